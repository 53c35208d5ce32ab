// Reciprocal by a table of 128 entries and one Newton step: 1 / x = y 2^-(16 + e), y within [2^15, 2^16).
// Formats: x unsigned 16 bit, x = m 2^e with m within [1, 2); x = 0 is taken for 1. y unsigned 16 bit, e 0 .. 15.
// Method: y0 = table(m), y = y0 + y0 (1 - m y0) (Newton-Raphson). The error bound stands in reciprocal.py.
// Rounding: to nearest, ties up, saturated. Latency: combinational; multipliers of 16 x 10 and 10 x 12 bits.
module reciprocal (
    input logic [15:0] x,
    output logic [15:0] y,
    output logic [3:0] e
);
  logic [15:0] s3, s2, s1, m;  // x, shifted to the left by 8, 4, 2, 1 places where it is small
  logic [8:0] low;
  logic [9:0] seed;
  logic [25:0] product;
  logic signed [25:0] distance;
  logic signed [11:0] residual;
  logic signed [28:0] refined;

  assign s3 = |x[15:8] ? x : {x[7:1], x[0] | ~|x, 8'd0};
  assign s2 = |s3[15:12] ? s3 : s3 << 4;
  assign s1 = |s2[15:14] ? s2 : s2 << 2;
  assign m = s1[15] ? s1 : s1 << 1;
  assign e = {|x[15:8], |s3[15:12], |s2[15:14], s1[15]};
  reciprocal_rom seeds (
      .address(m[14:8]),
      .data(low)
  );
  assign seed = {1'b1, low};  // fraction 10
  assign product = m * seed;  // fraction 25, near 1
  assign distance = 26'h2000000 - product;  // 2^25 - product is within 18 bits
  assign residual = distance[18:7];  // fraction 18
  assign refined = $signed({1'b0, seed, 18'd0}) + $signed({1'b0, seed}) * residual + 29'sd2048;
  assign y = refined[28] ? 16'hffff : refined[27:12];
endmodule
