// Activation by 16 straight lines between points of the function at -4, -3.5, .. 4; outside, lines of its final slopes.
// The same function as the activation `piecewise` of gptcore at its defaults, in fixed point.
// Formats: x and y signed 16 bit, fraction 12. A table entry is {value at the left end, fraction 12; rise over the
// segment, fraction 12}: the rise times the 11 bit place within the segment has fraction 23.
// Rounding: to nearest, ties up. Latency: combinational, one multiplier of 13 x 11 bits.
module pwl_activation #(
    parameter RIGHT_SLOPE = 1  // 1: the right tail rises as x does; 0: it is flat
) (
    input logic [15:0] x,
    output logic [15:0] y
);
  logic below, above;
  logic [15:0] shifted;
  logic [3:0] segment;
  logic [10:0] place;
  logic [28:0] entry;
  logic signed [15:0] start, line, tail;
  logic signed [12:0] rise;
  logic signed [24:0] product;

  // x + 4 in 17 bits is within [0, 8) inside; one bit less suffices since |x| < 8.
  assign shifted = x + 16'd16384;
  assign below = x[15] & ~x[14];
  assign above = ~x[15] & x[14];
  assign segment = below ? 4'd0 : above ? 4'd15 : shifted[14:11];
  assign place = below ? 11'd0 : above ? 11'd2047 : shifted[10:0];
  pwl_activation_rom lines (
      .address(segment),
      .data(entry)
  );
  assign start = entry[28:13];
  assign rise = entry[12:0];
  assign product = rise * $signed({1'b0, place}) + 25'sd1024;
  assign line = start + $signed(product[24:11]);
  // From the last place of the last segment, 4 - 2^-12.
  assign tail = (RIGHT_SLOPE != 0 && above) ? {2'b00, x[13:0]} + 16'd1 : 16'd0;
  assign y = line + tail;
endmodule
