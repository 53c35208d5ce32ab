// Softermax: 2^(x - m) / sum 2^(x - m) of a row, online, in integers (arXiv 2103.09301, sections 3 and 4).
//
// m is the running maximum of ceil(x), so that a new maximum shifts the sum by whole places; what is left of an
// exponent is a fraction, looked up in a table of 2^FRAC entries (module softermax_power).
// Formats: score two's complement, INT bits and FRAC of fraction; powers 2^(x - m) and weights unsigned, 16 bits, 15 of
// them fraction; sum SUM bits, 15 of them fraction (rows of up to 2^(SUM - 15) - 1 scores); reciprocal of the sum: 9
// bits by the first 6 bits after the leading one of the sum (module softermax_reciprocal), and a shift. Shifts truncate.
// softermax.py generates the tables.
// Protocol: a row comes twice, scores with `valid`: phase 0 makes maximum and sum, phase 1 makes the weights. `start`
// marks the first score of phase 0; at least one cycle without `valid` lies between phase 0 and phase 1. BUFFER = 0: the
// scores come from outside both times. BUFFER = words of flip-flops (a power of two): they come in phase 0 only and are
// kept here; `score` is not read in phase 1. Latency: 3 cycles from a score of phase 1 to its weight; one score a cycle.
module softermax #(
    parameter INT = 6,
    parameter FRAC = 6,
    parameter SUM = 26,  // at most 30
    parameter BUFFER = 0
) (
    input  logic clk,
    input  logic rst,
    input  logic valid,
    input  logic phase,
    input  logic start,
    input  logic [INT+FRAC-1:0] score,
    output logic out_valid,
    output logic [15:0] weight
);
  logic [INT+FRAC-1:0] given;
  generate
    if (BUFFER > 0) begin : buffer
      logic [INT+FRAC-1:0] words[BUFFER];
      logic [$clog2(BUFFER)-1:0] following;
      logic weighting;
      wire [$clog2(BUFFER)-1:0] address = start || (phase && !weighting) ? 0 : following;
      always_ff @(posedge clk) if (valid && !phase) words[address] <= score;
      always_ff @(posedge clk)
        if (rst) {following, weighting} <= 0;
        else if (valid) begin
          following <= address + 1'b1;
          weighting <= phase;
        end
      assign given = phase ? words[address] : score;
    end else begin : outside
      assign given = score;
    end
  endgenerate

  // Score: maximum, and the power of two.
  logic [INT+FRAC-1:0] x;
  logic x_valid, x_phase, x_start;
  logic signed [INT:0] highest;
  wire signed [INT:0] whole = $signed(x[INT+FRAC-1:FRAC]);
  wire signed [INT:0] ceiling = whole + $signed({1'b0, x[FRAC-1:0] != 0});
  wire signed [INT:0] now = (x_start || ceiling > highest) ? ceiling : highest;
  wire [INT:0] distance = now - whole;
  wire [15:0] fraction;
  softermax_power power_table (.address(x[FRAC-1:0]), .data(fraction));

  // Power: sum, or the product with the reciprocal of the sum.
  logic [15:0] power;
  logic [INT:0] rise;
  logic add, replayed, first;
  logic [SUM-1:0] total;

  // Reciprocal: the sum is 2^14 at least, as 2^(max - ceil(max)) > 1/2.
  logic [3:0] places;
  logic [5:0] leading;
  wire [8:0] inverse;
  logic [8:0] inverse_q;
  logic [3:0] places_q;
  always_comb begin
    places  = 0;
    leading = total[13:8];
    for (int i = 1; i < SUM - 14; i++)
      if (total[14+i]) begin
        places  = i;
        leading = total[8+i+:6];
      end
  end
  softermax_reciprocal reciprocal_table (.address(leading), .data(inverse));

  wire [24:0] product = power * inverse_q;  // power / sum 2^(8 + 15 + places)

  always_ff @(posedge clk)
    if (rst) begin
      {x, x_valid, x_phase, x_start, highest, power, rise, add, replayed, first} <= 0;
      {total, inverse_q, places_q, weight, out_valid} <= 0;
    end else begin
      {x_valid, x_phase, x_start} <= {valid, phase, start};
      if (BUFFER == 0 || valid) x <= given;
      if (x_valid) highest <= now;
      power <= fraction >> distance;
      rise <= now - highest;
      {add, replayed, first} <= {x_valid && !x_phase, x_valid && x_phase, x_start};
      if (add) total <= (first ? '0 : total >> rise) + power;
      {inverse_q, places_q} <= {inverse, places};
      weight <= (product >> 8) >> places_q;
      out_valid <= replayed;
    end
endmodule
