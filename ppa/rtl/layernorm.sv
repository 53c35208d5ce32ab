// Layer normalisation (arXiv 1607.06450) of rows of LENGTH entries, streamed twice, one entry a cycle:
//   y = saturate(bias + round(weight (LENGTH x - S1) 2^-SHIFT / sqrt(LENGTH (EPS + S2) - S1^2)))
// S1 the sum and S2 the sum of the squares of a row: the variance is exact whatever the mean, without a division.
// Formats: x, weight, bias, y signed 8 bit; the fraction of y is SHIFT less than that of the weight; EPS >= 1 counts in
// squared steps of x per row. LENGTH is 32 .. 1024.
// Protocol: start (no data); entries with valid, the last one with last; ready comes at most LOG + 15 cycles later;
// then entries, weights and biases with valid, in any number, each giving y with y_valid two cycles later. start begins
// anew at any time. valid counts only while measuring or ready. A row has at most LENGTH entries; what does not come
// counts as zeros.
// Method: S1^2 in three products of halves; then as in rmsnorm: LENGTH^2 times the variance is brought to m 4^exponent,
// 1 / sqrt(m) by a table and one Newton step, one multiplier of 13 x 13 bits for everything but the weight.
// Rounding: to nearest, ties up; LENGTH x - S1 is rounded to 13 bits, steps of 1/16 x at a power of two.
module layernorm #(
    parameter LENGTH = 1024,
    parameter EPS = 1,
    parameter SHIFT = 1
) (
    input logic clk,
    input logic rst,
    input logic start,
    input logic valid,
    input logic last,
    input logic [7:0] x,
    input logic [7:0] weight,
    input logic [7:0] bias,
    output logic ready,
    output logic [7:0] y,
    output logic y_valid
);
  localparam LOG = $clog2(LENGTH);
  localparam ACC = 2 * LOG + 14;
  localparam SUM = LOG + 8;
  localparam IDLE = 4'd0, MEASURE = 4'd1, SCALE = 4'd2, HIGH = 4'd3, CROSS = 4'd4, LOW = 4'd5, NORMALISE = 4'd6,
      ROOT = 4'd7, RESIDUAL = 4'd8, REFINE = 4'd9, APPLY = 4'd10;
  logic [3:0] phase;
  logic [ACC-1:0] acc;
  logic signed [SUM-1:0] sum;
  logic [4:0] exponent;
  logic [11:0] r, t;  // fractions 12 and 11
  logic [7:0] seed, weight_1, bias_1;
  logic signed [16:0] scaled;
  logic valid_1;

  rsqrt_rom seeds (
      .address(acc[ACC-1:ACC-7]),
      .data(seed)
  );

  // Deviation from the mean, LENGTH times, in 13 bits.
  logic signed [SUM:0] deviation;
  logic signed [12:0] centred, wide_x, high, low;
  assign deviation = $signed(x) * $signed((LOG + 2)'(LENGTH)) - sum + $signed((SUM + 1)'(1 << (LOG - 4) >> 1));
  assign centred = 13'(deviation >>> (LOG - 4));
  assign wide_x = {{5{x[7]}}, x};
  assign high = 13'(sum >>> 9);
  assign low = {4'd0, sum[8:0]};

  logic signed [12:0] a, b;
  logic signed [25:0] product;
  always_comb
    case (phase)
      MEASURE: {a, b} = {wide_x, wide_x};
      HIGH: {a, b} = {high, high};
      CROSS: {a, b} = {high, low};
      LOW: {a, b} = {low, low};
      ROOT: {a, b} = {1'b0, acc[ACC-1:ACC-12], 1'b0, r};
      APPLY: {a, b} = {centred, 1'b0, r};
      default: {a, b} = {1'b0, t, 1'b0, r};
    endcase
  assign product = a * b;

  logic signed [ACC-1:0] extended;
  logic [ACC-1:0] addend;
  assign extended = ACC'(product);
  assign addend = phase == MEASURE ? extended :
      ~(phase == HIGH ? extended << 18 : phase == CROSS ? extended << 10 : extended);

  // ROOT: half a step of r stands for the bits of m that were cut off, and half a step of t for the rounding.
  logic [25:0] root, residual, refined, rounded;
  assign root = product + 26'd2544;
  assign residual = 26'd25169920 - product;  // 3 2^23 + 2^12
  assign refined = product + 26'd1024;
  assign rounded = product + 26'd128;

  logic signed [24:0] weighted, halves, result;
  assign weighted = scaled * $signed(weight_1);
  assign halves = weighted >>> (exponent + 5'(7 + SHIFT) - 5'(LOG));
  assign result = ((halves + 25'sd1) >>> 1) + $signed(bias_1);

  assign ready = phase == APPLY;
  always_ff @(posedge clk)
    if (rst) begin
      {phase, acc, sum, exponent, r, t, weight_1, bias_1, scaled, valid_1, y, y_valid} <= '0;
    end else begin
      valid_1 <= phase == APPLY && valid && !start;
      if (phase == APPLY && valid) begin
        scaled <= rounded[24:8];
        weight_1 <= weight;
        bias_1 <= bias;
      end
      y_valid <= valid_1;
      if (valid_1) y <= &result[24:7] | ~|result[24:7] ? result[7:0] : {result[24], {7{~result[24]}}};

      if (start) begin
        phase <= MEASURE;
        acc <= ACC'(EPS);
        sum <= '0;
        exponent <= 5'(LOG + 6);
      end else begin
        case (phase)
          MEASURE: if (valid && last) phase <= SCALE;
          NORMALISE: if (acc[ACC-1:ACC-2] != 0) phase <= ROOT;
          SCALE, HIGH, CROSS, LOW, ROOT, RESIDUAL, REFINE: phase <= phase + 1'b1;
          default: ;
        endcase
        case (phase)
          MEASURE: if (valid) {acc, sum} <= {acc + addend, sum + SUM'(wide_x)};
          SCALE: acc <= acc * ACC'(LENGTH);
          HIGH, CROSS, LOW: acc <= acc + addend + 1'b1;
          NORMALISE:
          if (acc[ACC-1:ACC-2] == 0) begin
            acc <= acc << 2;
            exponent <= exponent - 1'b1;
          end else r <= {1'b1, seed, 3'b0};
          ROOT: t <= root[23] ? '1 : root[22:11];
          RESIDUAL: t <= residual[24:13];
          REFINE: r <= refined[23] ? '1 : refined[22:11];
          default: ;
        endcase
      end
    end
endmodule
