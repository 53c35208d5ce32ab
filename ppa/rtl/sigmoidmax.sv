// Attention weight sigmoid(score + bias) by a table, without a row statistic (arXiv 2409.04431).
// Formats: score and bias (-ln keys) signed 8 bit, fraction 4, their sum saturated to 8 bits; weight unsigned 16 bit,
// fraction 16. With SCALED = 1 it is multiplied by factor = 1 / (divisor keys), fraction 16; else factor is not read.
// Rounding: to nearest, ties up. Latency: combinational; a table of 256 entries of 16 bits.
module sigmoidmax #(
    parameter SCALED = 0
) (
    input logic [7:0] score,
    input logic [7:0] bias,
    input logic [15:0] factor,
    output logic [15:0] weight
);
  logic [8:0] sum;
  logic [7:0] argument;
  logic [15:0] value;
  assign sum = {score[7], score} + {bias[7], bias};
  assign argument = sum[8] == sum[7] ? sum[7:0] : {sum[8], {7{~sum[8]}}};
  sigmoidmax_rom sigmoid (
      .address(argument),
      .data(value)
  );
  generate
    if (SCALED) begin : scaled
      logic [31:0] product;
      assign product = value * factor + 32'd32768;
      assign weight = product[31:16];
    end else begin : plain
      assign weight = value;
    end
  endgenerate
endmodule
