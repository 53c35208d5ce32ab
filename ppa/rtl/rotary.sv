// Rotation of a pair by a given angle: a' = a cos - b sin, b' = a sin + b cos (RoFormer, arXiv 2104.09864).
// Formats: a, b, a', b' signed WIDTH bits of one fraction; cos, sin signed WIDTH bits, fraction WIDTH - 1 (1 is taken
// as its largest pattern). Each sum of two products is rounded once, to nearest, ties up, and saturated.
// Latency: combinational; four multipliers.
module rotary #(
    parameter WIDTH = 8
) (
    input logic [WIDTH-1:0] a,
    input logic [WIDTH-1:0] b,
    input logic [WIDTH-1:0] cosine,
    input logic [WIDTH-1:0] sine,
    output logic [WIDTH-1:0] turned_a,
    output logic [WIDTH-1:0] turned_b
);
  localparam SUM = 2 * WIDTH + 1;
  logic signed [SUM-1:0] half, sum_a, sum_b;
  assign half = 1 << (WIDTH - 2);
  assign sum_a = $signed(a) * $signed(cosine) - $signed(b) * $signed(sine) + half;
  assign sum_b = $signed(a) * $signed(sine) + $signed(b) * $signed(cosine) + half;

  function [WIDTH-1:0] saturate(input [SUM-1:0] sum);
    saturate = &sum[SUM-1:2*WIDTH-2] | ~|sum[SUM-1:2*WIDTH-2] ? sum[2*WIDTH-2:WIDTH-1] :
        {sum[SUM-1], {(WIDTH - 1) {~sum[SUM-1]}}};
  endfunction
  assign turned_a = saturate(sum_a);
  assign turned_b = saturate(sum_b);
endmodule
