// ConSmax: weight = R(e C), e = base^(code step), C = R(base^-beta / gamma), one constant a head (arXiv 2402.10930).
//
// code: two's complement, BITS bits, the rounded score; constant, weight: floats (EXP, MAN) as in fp_mul; R rounds to
// the nearest, ties to even. SPLIT = 1: e = R(H[high] L[low]) of two tables (modules exp_split_high, exp_split_low);
// SPLIT = 0: e from one table of 2^BITS entries (module exp_lut_table). consmax.py generates the tables.
// Latency: 3 cycles with SPLIT (tables, product, product with C), else 2; one score a cycle. There is no maximum, no
// sum, and so no row: every score is independent of the others. `constant` is read in the last stage.
module consmax #(
    parameter BITS  = 8,
    parameter LOW   = 4,
    parameter EXP   = 8,
    parameter MAN   = 7,
    parameter SPLIT = 1
) (
    input  logic clk,
    input  logic rst,
    input  logic valid,
    input  logic [BITS-1:0] code,
    input  logic [EXP+MAN:0] constant,
    output logic out_valid,
    output logic [EXP+MAN:0] weight
);
  logic [EXP+MAN:0] e;
  logic e_valid;
  wire [EXP+MAN:0] product;

  generate
    if (SPLIT) begin : split
      wire [EXP+MAN:0] high, low, both;
      logic [EXP+MAN:0] high_q, low_q;
      logic table_valid;
      exp_split_high high_table (.address(code[BITS-1:LOW]), .data(high));
      exp_split_low low_table (.address(code[LOW-1:0]), .data(low));
      fp_mul #(.EXP(EXP), .MAN(MAN)) join_halves (.a(high_q), .b(low_q), .y(both));
      always_ff @(posedge clk)
        if (rst) {table_valid, high_q, low_q, e_valid, e} <= 0;
        else begin
          {table_valid, high_q, low_q} <= {valid, high, low};
          {e_valid, e} <= {table_valid, both};
        end
    end else begin : whole
      wire [EXP+MAN:0] entry;
      exp_lut_table lut (.address(code), .data(entry));
      always_ff @(posedge clk)
        if (rst) {e_valid, e} <= 0;
        else {e_valid, e} <= {valid, entry};
    end
  endgenerate

  fp_mul #(.EXP(EXP), .MAN(MAN)) scale (.a(e), .b(constant), .y(product));
  always_ff @(posedge clk)
    if (rst) {out_valid, weight} <= 0;
    else {out_valid, weight} <= {e_valid, product};
endmodule
