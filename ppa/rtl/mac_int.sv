// Multiply-accumulate of signed integers: acc <= (clear ? 0 : acc) + a * b, modulo 2^ACC_WIDTH.
// a, b: WIDTH bits, acc: ACC_WIDTH bits, two's complement. The operands and `clear` are registered: inputs of cycle t
// are in acc from cycle t + 2 on. One product a cycle, multiplication and addition in one cycle.
// rst acts through `clear`: hold it for two cycles, with operands of 0.
module mac_int #(
    parameter WIDTH = 8,
    parameter ACC_WIDTH = 32
) (
    input  logic                 clk,
    input  logic                 rst,
    input  logic                 clear,
    input  logic [WIDTH-1:0]     a,
    input  logic [WIDTH-1:0]     b,
    output logic [ACC_WIDTH-1:0] acc
);
    logic                      clear_r;
    logic signed [WIDTH-1:0]   a_r, b_r;
    logic signed [2*WIDTH-1:0] product;

    assign product = a_r * b_r;

    always_ff @(posedge clk) begin
        clear_r <= clear | rst;
        a_r     <= a;
        b_r     <= b;
        acc     <= (clear_r ? {ACC_WIDTH{1'b0}} : acc) + {{(ACC_WIDTH-2*WIDTH){product[2*WIDTH-1]}}, product};
    end
endmodule
