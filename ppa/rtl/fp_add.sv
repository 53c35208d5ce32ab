// y = a + b in floating point, combinational.
//
// Format: sign | EXP bits of exponent, bias 2^(EXP-1)-1 | MAN bits of mantissa. The exact sum is rounded once, to the
// nearest, ties to even. Flushed to zero: operands with exponent 0, and results below the smallest normal number (+0).
// Above the largest finite number, HIGHEST, the result saturates. No infinities, no NaN: the largest exponent is an
// exponent like any other. Exact cancellation gives +0.
// Latency: 0 cycles. Textbook single-path adder: swap by magnitude, align with guard, round and sticky bit, add or
// subtract, count leading zeros and shift, round by increment.
module fp_add #(
    parameter EXP = 8,
    parameter MAN = 7,
    parameter HIGHEST = ((2 ** EXP - 1) << MAN) - 1  // magnitude pattern
) (
    input  logic [EXP+MAN:0] a,
    input  logic [EXP+MAN:0] b,
    output logic [EXP+MAN:0] y
);
  localparam W = MAN + 5;  // carry, leading one, mantissa, guard, round, sticky
  localparam STEPS = $clog2(W);

  wire swap = a[EXP+MAN-1:0] < b[EXP+MAN-1:0];
  wire [EXP+MAN:0] large = swap ? b : a;
  wire [EXP+MAN:0] small = swap ? a : b;
  wire [EXP-1:0] exponent = large[EXP+MAN-1:MAN];
  wire [EXP-1:0] distance = exponent - small[EXP+MAN-1:MAN];
  wire subtract = a[EXP+MAN] ^ b[EXP+MAN];

  logic [W-2:0] aligned;
  logic sticky;
  always_comb begin
    aligned = small[EXP+MAN-1:MAN] == 0 ? 0 : {1'b1, small[MAN-1:0], 3'b000};
    sticky = 0;
    for (int i = 0; i < STEPS; i++)
      if (i < EXP && distance[i]) begin
        sticky = sticky | ((aligned & ((1 << (1 << i)) - 1)) != 0);
        aligned = aligned >> (1 << i);
      end
    // So far away that it could not even break a tie: the sum is the large operand.
    aligned = distance >> STEPS != 0 ? 0 : {aligned[W-2:1], aligned[0] | sticky};
  end

  wire [W-1:0] first = {1'b0, exponent != 0, large[MAN-1:0], 3'b000};
  wire [W-1:0] total = subtract ? first - aligned : first + aligned;

  logic [W-1:0] shifted;
  logic [STEPS-1:0] zeros;
  always_comb begin
    shifted = total;
    for (int i = STEPS - 1; i >= 0; i--) begin
      zeros[i] = (shifted >> (W - (1 << i))) == 0;
      if (zeros[i]) shifted = shifted << (1 << i);
    end
  end

  wire up = shifted[3] && (shifted[4] || shifted[2:0] != 0);
  wire signed [EXP+1:0] moved = $signed({2'b00, exponent}) + 1 - $signed({1'b0, zeros});
  wire [EXP+MAN+1:0] magnitude = {moved, shifted[W-2:4]} + up;
  wire negative = magnitude[EXP+MAN+1];
  wire under = !shifted[W-1] || negative || magnitude[EXP+MAN+1:MAN] == 0;
  wire over = !negative && magnitude > HIGHEST;
  assign y = under ? 0 : {large[EXP+MAN], over ? HIGHEST[EXP+MAN-1:0] : magnitude[EXP+MAN-1:0]};
endmodule
