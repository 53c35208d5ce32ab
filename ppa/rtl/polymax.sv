// Attention weight of kind polymax with power 2, without a row statistic: right of 0 score^2 + Y, left of it the line
// Y + score SLOPE, nothing where that is negative; times factor = 1 / (divisor keys).
// Formats: score signed 8 bit, fraction 4; Y unsigned, fraction 8; SLOPE unsigned, fraction 12; the curve 15
// bits, fraction 8; factor and weight unsigned 16 bit, fraction 16 (a factor of 1 is 65535).
// Rounding: line and weight to nearest, ties up; saturated. Latency: combinational; multipliers of 7 x 7, 15 x 16 bits
// and one by the constant SLOPE.
module polymax #(
    parameter Y = 256,
    parameter SLOPE = 41
) (
    input logic [7:0] score,
    input logic [15:0] factor,
    output logic [15:0] weight
);
  logic [13:0] square;
  logic signed [24:0] fall, line;
  logic [14:0] curve;
  logic [30:0] product;
  logic [23:0] rounded;
  assign square = score[6:0] * score[6:0];
  assign fall = $signed(score) * $signed({1'b0, 15'(SLOPE)}) + 25'sd128;
  assign line = (fall >>> 8) + $signed(25'(Y));
  assign curve = ~score[7] ? square + 15'(Y) : line[24] ? 15'd0 : line[14:0];
  assign product = curve * factor;
  assign rounded = {1'b0, product[30:8]} + product[7];
  assign weight = |rounded[23:16] ? 16'hffff : rounded[15:0];
endmodule
