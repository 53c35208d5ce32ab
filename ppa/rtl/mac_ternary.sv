// Multiply-accumulate with ternary weights: acc <= (clear ? 0 : acc) + w * a, modulo 2^ACC_WIDTH.
// a: WIDTH bits, acc: ACC_WIDTH bits, two's complement; w: 01 is +1, 11 is -1, 00 and 10 are 0. The operands and
// `clear` are registered: inputs of cycle t are in acc from cycle t + 2 on. rst acts through `clear`: hold it for two cycles,
// with operands of 0.
module mac_ternary #(
    parameter WIDTH = 8,
    parameter ACC_WIDTH = 32
) (
    input  logic                 clk,
    input  logic                 rst,
    input  logic                 clear,
    input  logic [WIDTH-1:0]     a,
    input  logic [1:0]           w,
    output logic [ACC_WIDTH-1:0] acc
);
    logic                 clear_r;
    logic [WIDTH-1:0]     a_r;
    logic [1:0]           w_r;
    logic [WIDTH-1:0]     term;
    logic                 minus;

    assign minus = w_r[0] & w_r[1];
    assign term  = (w_r[0] ? a_r : {WIDTH{1'b0}}) ^ {WIDTH{minus}};  // -a = ~a + 1

    always_ff @(posedge clk) begin
        clear_r <= clear | rst;
        a_r     <= a;
        w_r     <= w;
        acc     <= (clear_r ? {ACC_WIDTH{1'b0}} : acc) + {{(ACC_WIDTH-WIDTH){term[WIDTH-1]}}, term}
                   + {{(ACC_WIDTH-1){1'b0}}, minus};
    end
endmodule
