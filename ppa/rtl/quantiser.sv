// Requantiser behind a matrix product: y = saturate(round(acc factor / 2^shift)).
// Formats: acc signed ACC bits, factor unsigned MUL bits, y signed OUT bits. The scale that is applied is
// factor 2^-shift (integer-only inference, arXiv 1712.05877). shift is 0 .. 63.
// Rounding: to nearest, ties to even. Latency: 1 cycle; the product and the shift are registered, y is combinational.
module quantiser #(
    parameter ACC = 32,
    parameter MUL = 16,
    parameter OUT = 8
) (
    input logic clk,
    input logic rst,
    input logic [ACC-1:0] acc,
    input logic [MUL-1:0] factor,
    input logic [5:0] shift,
    output logic [OUT-1:0] y
);
  localparam PRODUCT = ACC + MUL;
  logic [ACC-1:0] magnitude;
  logic [PRODUCT-1:0] product;
  logic [5:0] places;
  logic [PRODUCT:0] scaled;  // the last bit is the first one behind the point
  logic [PRODUCT:0] rounded;
  logic [OUT-2:0] kept;
  logic negative, up, sticky, over;

  // Rounding is symmetric, so all is done on magnitudes.
  assign magnitude = acc[ACC-1] ? -acc : acc;
  always_ff @(posedge clk)
    if (rst) {negative, product, places} <= '0;
    else begin
      negative <= acc[ACC-1];
      product <= magnitude * factor;
      places <= shift;
    end

  // Shifts by powers of two; what leaves at the right is remembered in one bit.
  always_comb begin
    scaled = {product, 1'b0};
    sticky = 1'b0;
    for (int i = 5; i >= 0; i = i - 1)
      if (places[i]) begin
        for (int k = 0; k < 1 << i; k = k + 1) if (k <= PRODUCT) sticky = sticky | scaled[k];
        scaled = scaled >> (1 << i);
      end
  end
  assign up = scaled[0] & (sticky | scaled[1]);
  assign rounded = {1'b0, scaled[PRODUCT:1]} + up;
  assign over = |rounded[PRODUCT:OUT-1];
  assign kept = over ? '1 : rounded[OUT-2:0];
  // The lowest value is the complement of the highest.
  assign y = ~negative ? {1'b0, kept} : over ? {1'b1, ~kept} : -{1'b0, kept};
endmodule
