// Restoring divider, STEPS quotient bits a cycle: q = floor(n 2^WIDTH / d) for n < d, else all ones.
// Formats: n and d unsigned WIDTH bits; q unsigned, fraction WIDTH. WIDTH is a multiple of STEPS.
// Protocol: start with n and d; WIDTH / STEPS + 1 cycles later valid comes for one cycle, with q. A start at any time
// begins anew.
module divider #(
    parameter WIDTH = 16,
    parameter STEPS = 1
) (
    input logic clk,
    input logic rst,
    input logic start,
    input logic [WIDTH-1:0] n,
    input logic [WIDTH-1:0] d,
    output logic [WIDTH-1:0] q,
    output logic valid
);
  localparam ROUNDS = WIDTH / STEPS;
  localparam COUNT = $clog2(ROUNDS + 1);
  logic [WIDTH-1:0] divisor, rest, bits, next_rest, next_bits;
  logic [WIDTH:0] twice, difference;
  logic [COUNT-1:0] left;
  logic over;

  always_comb begin
    next_rest = rest;
    next_bits = bits;
    for (int i = 0; i < STEPS; i = i + 1) begin
      twice = {next_rest, 1'b0};
      difference = twice - {1'b0, divisor};
      // rest < divisor, so the difference is negative if and only if its highest bit is set.
      next_rest = difference[WIDTH] ? twice[WIDTH-1:0] : difference[WIDTH-1:0];
      next_bits = {next_bits[WIDTH-2:0], ~difference[WIDTH]};
    end
  end

  assign q = over ? '1 : bits;
  always_ff @(posedge clk)
    if (rst) begin
      {divisor, rest, bits, left, over, valid} <= '0;
    end else begin
      valid <= !start && left == 1;
      if (start) begin
        divisor <= d;
        rest <= n;
        bits <= '0;
        over <= n >= d;
        left <= COUNT'(ROUNDS);
      end else if (left != 0) begin
        rest <= next_rest;
        bits <= next_bits;
        left <= left - 1'b1;
      end
    end
endmodule
