// acc <- a b + acc in floating point; `clear` begins a new sum: acc <- a b.
//
// Operands have EXP and MAN bits (fp_mul), the accumulator is fp32. The product is exact in fp32, but for the range:
// only bf16 products can leave it, and saturate or become zero. The sum is rounded to the nearest, ties to even.
// Latency: 2 cycles: registered operands, then product and sum in one cycle (not pipelined), one product a cycle.
module mac_fp #(
    parameter EXP = 8,
    parameter MAN = 7
) (
    input  logic clk,
    input  logic rst,
    input  logic [EXP+MAN:0] a,
    input  logic [EXP+MAN:0] b,
    input  logic clear,
    output logic [31:0] acc
);
  logic [EXP+MAN:0] a_q, b_q;
  logic clear_q;
  wire [31:0] product, total;

  fp_mul #(.EXP(EXP), .MAN(MAN), .OUT_EXP(8), .OUT_MAN(23)) multiply (.a(a_q), .b(b_q), .y(product));
  fp_add #(.EXP(8), .MAN(23)) add (.a(clear_q ? 32'b0 : acc), .b(product), .y(total));

  always_ff @(posedge clk)
    if (rst) {a_q, b_q, clear_q, acc} <= 0;
    else begin
      {a_q, b_q, clear_q} <= {a, b, clear};
      acc <= total;
    end
endmodule
