// ConSmax with tables that are written: consmax with SPLIT = 1, whose two tables are flip-flops with a write port.
//
// address: 0 and the low bits of a code for the low table, 1 and the high bits (as an unsigned number) for the high
// table; BITS is even and LOW half of it. An entry that is read in the cycle in which it is written is the old one. The
// tables have no reset: every entry is written before `valid`, without which zeros are read. Formats and latency (3
// cycles) as in consmax.
module consmax_writable #(
    parameter BITS = 8,
    parameter LOW  = 4,
    parameter EXP  = 8,
    parameter MAN  = 7
) (
    input  logic clk,
    input  logic rst,
    input  logic valid,
    input  logic [BITS-1:0] code,
    input  logic [EXP+MAN:0] constant,
    input  logic write,
    input  logic [LOW:0] address,
    input  logic [EXP+MAN:0] data,
    output logic out_valid,
    output logic [EXP+MAN:0] weight
);
  logic [EXP+MAN:0] high_table[2**LOW];
  logic [EXP+MAN:0] low_table[2**LOW];
  logic [EXP+MAN:0] high_q, low_q, e;
  logic table_valid, e_valid;
  wire [EXP+MAN:0] both, product;

  fp_mul #(.EXP(EXP), .MAN(MAN)) join_halves (.a(high_q), .b(low_q), .y(both));
  fp_mul #(.EXP(EXP), .MAN(MAN)) scale (.a(e), .b(constant), .y(product));

  always_ff @(posedge clk) begin
    if (write && address[LOW]) high_table[address[LOW-1:0]] <= data;
    if (write && !address[LOW]) low_table[address[LOW-1:0]] <= data;
  end
  always_ff @(posedge clk)
    if (rst) {table_valid, high_q, low_q, e_valid, e, out_valid, weight} <= 0;
    else begin
      table_valid <= valid;
      {high_q, low_q} <= valid ? {high_table[code[BITS-1:LOW]], low_table[code[LOW-1:0]]} : 0;
      {e_valid, e} <= {table_valid, both};
      {out_valid, weight} <= {e_valid, product};
    end
endmodule
