// Rectified linear unit: max(x, 0).
// x, y: WIDTH bits, two's complement. Combinational, latency 0.
module relu #(
    parameter WIDTH = 8
) (
    input  logic [WIDTH-1:0] x,
    output logic [WIDTH-1:0] y
);
    assign y = x[WIDTH-1] ? '0 : x;
endmodule
