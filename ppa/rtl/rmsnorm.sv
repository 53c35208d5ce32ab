// Root-mean-square normalisation (arXiv 1910.07467), a row streamed twice, one entry a cycle:
//   y = saturate(round(x weight 2^(8 - SHIFT) / sqrt(EPS + sum of the squares of the measured x)))
// Formats: x, weight, y signed 8 bit. The square root of the number of measured entries is a constant of the model and
// belongs to the scale of the weight; EPS >= 1 counts in squared steps of x. The statistic has SUM bits (even) and
// saturates. If only k entries are measured this is krmsnorm.
// Protocol: start (no data); entries with valid, the last measured one with last; ready comes at most SUM / 2 + 4
// cycles later; then entries and weights with valid, in any number, each giving y with y_valid two cycles later. start
// begins anew at any time. valid counts only while measuring or ready.
// Method: the sum is brought to m 4^exponent, m within [1, 4), two bits a cycle; 1 / sqrt(m) by a table of 96 entries
// and one Newton step r (3 - m r r) / 2. One multiplier of 13 x 13 bits does squares, Newton step and x r; another
// applies the weight. Rounding: to nearest, ties up.
module rmsnorm #(
    parameter SUM = 24,
    parameter EPS = 1,
    parameter SHIFT = 4
) (
    input logic clk,
    input logic rst,
    input logic start,
    input logic valid,
    input logic last,
    input logic [7:0] x,
    input logic [7:0] weight,
    output logic ready,
    output logic [7:0] y,
    output logic y_valid
);
  localparam IDLE = 3'd0, MEASURE = 3'd1, NORMALISE = 3'd2, ROOT = 3'd3, RESIDUAL = 3'd4, REFINE = 3'd5, APPLY = 3'd6;
  logic [2:0] phase;
  logic [SUM-1:0] sum;
  logic [3:0] exponent;
  logic [11:0] r, t;  // fractions 12 and 11
  logic [7:0] seed, weight_1;
  logic signed [15:0] scaled;  // x r, fraction 8
  logic valid_1;

  rsqrt_rom seeds (
      .address(sum[SUM-1:SUM-7]),
      .data(seed)
  );

  logic signed [12:0] a, b;
  logic signed [25:0] product;
  logic streams;
  assign streams = phase == MEASURE || phase == APPLY;
  assign a = streams ? {{5{x[7]}}, x} : phase == ROOT ? {1'b0, sum[SUM-1:SUM-12]} : {1'b0, t};
  assign b = phase == MEASURE ? {{5{x[7]}}, x} : {1'b0, r};
  assign product = a * b;

  // ROOT: half a step of r stands for the bits of m that were cut off, and half a step of t for the rounding.
  logic [25:0] root, residual, refined, rounded;
  logic [SUM:0] total;
  assign root = product + 26'd2544;
  assign residual = 26'd25169920 - product;  // 3 2^23 + 2^12
  assign refined = product + 26'd1024;
  assign rounded = product + 26'd8;
  assign total = sum + product[14:0];

  logic signed [23:0] weighted;
  logic signed [23:0] halves, result;
  assign weighted = scaled * $signed(weight_1);
  assign halves = weighted >>> (exponent + 5'(SHIFT - 1));
  assign result = (halves + 24'sd1) >>> 1;

  assign ready = phase == APPLY;
  always_ff @(posedge clk)
    if (rst) begin
      {phase, sum, exponent, r, t, weight_1, scaled, valid_1, y, y_valid} <= '0;
    end else begin
      valid_1 <= phase == APPLY && valid && !start;
      if (phase == APPLY && valid) begin
        scaled <= rounded[19:4];
        weight_1 <= weight;
      end
      y_valid <= valid_1;
      if (valid_1) y <= &result[23:7] | ~|result[23:7] ? result[7:0] : {result[23], {7{~result[23]}}};

      if (start) begin
        phase <= MEASURE;
        sum <= SUM'(EPS);
        exponent <= 4'(SUM / 2 - 1);
      end else
        case (phase)
          MEASURE:
          if (valid) begin
            sum <= total[SUM] ? '1 : total[SUM-1:0];
            if (last) phase <= NORMALISE;
          end
          NORMALISE:
          if (sum[SUM-1:SUM-2] == 0) begin
            sum <= sum << 2;
            exponent <= exponent - 1'b1;
          end else begin
            r <= {1'b1, seed, 3'b0};
            phase <= ROOT;
          end
          ROOT: begin
            t <= root[23] ? '1 : root[22:11];
            phase <= RESIDUAL;
          end
          RESIDUAL: begin
            t <= residual[24:13];
            phase <= REFINE;
          end
          REFINE: begin
            r <= refined[23] ? '1 : refined[22:11];
            phase <= APPLY;
          end
          default: ;
        endcase
    end
endmodule
