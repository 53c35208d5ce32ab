// Attention weight max(score + shift, 0) / (divisor keys), without a row statistic (arXiv 2309.08586).
// Formats: score signed 8 bit, fraction 4; SHIFT 0 .. 128 in the same steps; factor = 1 / (divisor keys) and weight
// unsigned 16 bit, fraction 16 (a factor of 1 is 65535).
// Rounding: to nearest, ties up; saturated. Latency: combinational; one multiplier of 8 x 16 bits.
module relumax #(
    parameter SHIFT = 16
) (
    input logic [7:0] score,
    input logic [15:0] factor,
    output logic [15:0] weight
);
  logic [8:0] shifted;
  logic [7:0] value;
  logic [23:0] product;
  logic [20:0] rounded;
  assign shifted = {score[7], score} + SHIFT;
  // From -128 to 255, so that bit 8 is the sign.
  assign value = shifted[8] ? 8'd0 : shifted[7:0];
  assign product = value * factor;
  assign rounded = {1'b0, product[23:4]} + product[3];
  assign weight = |rounded[20:16] ? 16'hffff : rounded[15:0];
endmodule
