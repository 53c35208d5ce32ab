// y = a b in floating point, combinational.
//
// Formats: sign | EXP bits of exponent, bias 2^(EXP-1)-1 | MAN bits of mantissa; that of y is OUT_EXP, OUT_MAN. The
// exact product is rounded once, to the nearest, ties to even. Flushed to zero: operands with exponent 0, and results
// that are below the smallest normal number after rounding (+0). Above the largest finite number, OUT_HIGHEST, the
// result saturates. No infinities, no NaN: the largest exponent is an exponent like any other.
// Latency: 0 cycles. Textbook multiplier: product of significands, one step of normalisation, rounding by increment.
module fp_mul #(
    parameter EXP = 8,
    parameter MAN = 7,
    parameter OUT_EXP = EXP,
    parameter OUT_MAN = MAN,
    parameter OUT_HIGHEST = ((2 ** OUT_EXP - 1) << OUT_MAN) - 1  // magnitude pattern
) (
    input  logic [EXP+MAN:0] a,
    input  logic [EXP+MAN:0] b,
    output logic [OUT_EXP+OUT_MAN:0] y
);
  localparam WIDE = 2 * MAN + 1;  // fraction bits of a normalised product
  localparam EW = (EXP > OUT_EXP ? EXP : OUT_EXP) + 2;
  localparam signed [EW-1:0] OFFSET = (2 ** (OUT_EXP - 1) - 1) - 2 * (2 ** (EXP - 1) - 1);

  wire [EXP-1:0] ea = a[EXP+MAN-1:MAN];
  wire [EXP-1:0] eb = b[EXP+MAN-1:MAN];
  wire zero = ea == 0 || eb == 0;
  wire [WIDE:0] product = {1'b1, a[MAN-1:0]} * {1'b1, b[MAN-1:0]};
  wire top = product[WIDE];
  wire [WIDE-1:0] fraction = top ? product[WIDE-1:0] : {product[WIDE-2:0], 1'b0};
  wire [EW-1:0] both = ea + eb;
  wire signed [EW-1:0] exponent = $signed(both) + OFFSET + $signed({{(EW - 1) {1'b0}}, top});

  wire [EW+OUT_MAN-1:0] magnitude;
  generate
    if (OUT_MAN >= WIDE) begin : exact
      assign magnitude = {exponent, fraction, {(OUT_MAN - WIDE) {1'b0}}};
    end else begin : rounding
      localparam CUT = WIDE - OUT_MAN;
      wire half = fraction[CUT-1];
      wire up = half && (fraction[CUT] || (fraction & ((1 << (CUT - 1)) - 1)) != 0);
      assign magnitude = {exponent, fraction[WIDE-1:CUT]} + up;
    end
  endgenerate

  wire negative = magnitude[EW+OUT_MAN-1];
  wire under = zero || negative || magnitude[EW+OUT_MAN-1:OUT_MAN] == 0;
  wire over = !negative && magnitude > OUT_HIGHEST;
  wire [OUT_EXP+OUT_MAN-1:0] kept = over ? OUT_HIGHEST : magnitude[OUT_EXP+OUT_MAN-1:0];
  assign y = under ? 0 : {a[EXP+MAN] ^ b[EXP+MAN], kept};
endmodule
