// Activation by a table of 256 entries: y = f(x).
// Formats: x and y signed 8 bit fixed point; their fractions are those of the generated table (lut_activation.py).
// Latency: combinational. The table is logic, one output pattern for each input pattern.
module lut_activation (
    input logic [7:0] x,
    output logic [7:0] y
);
  lut_activation_rom table_of_f (
      .address(x),
      .data(y)
  );
endmodule
