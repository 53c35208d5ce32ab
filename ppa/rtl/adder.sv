// Adder: sum = a + b modulo 2^WIDTH.
// a, b, sum: WIDTH bits, two's complement or unsigned alike. Combinational, latency 0.
// The carry structure is left to synthesis.
module adder #(
    parameter WIDTH = 32
) (
    input  logic [WIDTH-1:0] a,
    input  logic [WIDTH-1:0] b,
    output logic [WIDTH-1:0] sum
);
    assign sum = a + b;
endmodule
