// Signed multiplier: {high, low} = a * b.
// a, b: WIDTH bits, two's complement; the product has 2 WIDTH bits, in two halves. Combinational, latency 0.
// The structure of the array is left to synthesis.
module multiplier #(
    parameter WIDTH = 8
) (
    input  logic [WIDTH-1:0] a,
    input  logic [WIDTH-1:0] b,
    output logic [WIDTH-1:0] low,
    output logic [WIDTH-1:0] high
);
    assign {high, low} = $signed(a) * $signed(b);
endmodule
