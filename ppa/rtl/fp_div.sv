// y = a / b in floating point, combinational.
//
// Format: sign | EXP bits of exponent, bias 2^(EXP-1)-1 | MAN bits of mantissa. The exact quotient is rounded once, to
// the nearest, ties to even. Flushed to zero: operands with exponent 0, and results below the smallest normal number
// (+0). Above the largest finite number, HIGHEST, the result saturates, as it does for b = 0; 0 / b is 0 for every b.
// No infinities, no NaN: the largest exponent is an exponent like any other.
// Latency: 0 cycles. Restoring division, MAN + 3 steps unrolled.
module fp_div #(
    parameter EXP = 5,
    parameter MAN = 10,
    parameter HIGHEST = ((2 ** EXP - 1) << MAN) - 1  // magnitude pattern
) (
    input  logic [EXP+MAN:0] a,
    input  logic [EXP+MAN:0] b,
    output logic [EXP+MAN:0] y
);
  localparam signed [EXP+1:0] BIAS = 2 ** (EXP - 1) - 1;

  wire [EXP-1:0] ea = a[EXP+MAN-1:MAN];
  wire [EXP-1:0] eb = b[EXP+MAN-1:MAN];
  wire [MAN:0] divisor = {1'b1, b[MAN-1:0]};

  logic [MAN+1:0] rest, difference;
  logic [MAN+2:0] quotient;  // 1 bit before the point, which is 0 if the significand of a is below that of b
  always_comb begin
    rest = {2'b01, a[MAN-1:0]};
    for (int i = MAN + 2; i >= 0; i--) begin
      difference = rest - divisor;
      quotient[i] = !difference[MAN+1];
      rest = (difference[MAN+1] ? rest : difference) << 1;
    end
  end

  wire top = quotient[MAN+2];
  wire [MAN:0] fraction = top ? quotient[MAN+1:1] : quotient[MAN:0];  // mantissa and the bit that decides
  wire up = fraction[0];  // never a tie: an odd quotient of MAN + 2 bits times b is wider than a
  wire signed [EXP+1:0] exponent =
      $signed({2'b00, ea}) - $signed({2'b00, eb}) + BIAS - $signed({{(EXP + 1) {1'b0}}, !top});
  wire [EXP+MAN+1:0] magnitude = {exponent, fraction[MAN:1]} + up;
  wire negative = magnitude[EXP+MAN+1];
  wire over = eb == 0 || (!negative && magnitude > HIGHEST);
  wire under = ea == 0 || (eb != 0 && (negative || magnitude[EXP+MAN+1:MAN] == 0));
  assign y = under ? 0 : {a[EXP+MAN] ^ b[EXP+MAN], over ? HIGHEST[EXP+MAN-1:0] : magnitude[EXP+MAN-1:0]};
endmodule
