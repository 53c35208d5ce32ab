// Squared rectifier: y = max(x, 0)^2, exact (Primer, arXiv 2109.08668).
// Formats: x signed WIDTH bits; y unsigned 2 WIDTH - 2 bits, of twice the fraction. Latency: combinational.
module squared_relu #(
    parameter WIDTH = 8
) (
    input logic [WIDTH-1:0] x,
    output logic [2*WIDTH-3:0] y
);
  logic [WIDTH-2:0] positive;
  assign positive = x[WIDTH-1] ? '0 : x[WIDTH-2:0];
  assign y = positive * positive;
endmodule
