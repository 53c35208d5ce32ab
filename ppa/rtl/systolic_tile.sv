// Output-stationary systolic tile: ROWS x COLUMNS cells of mac_int, element (i, j) of A B stays in cell (i, j). Row
// i of A enters at the left, column j of B at the top; both move on by one cell a cycle. Element k of row i and of
// column j is given i and j cycles after element k of the first (the skew is the feeder's); clear goes with element 0
// of the first row and column, and moves on with them. Zeros are given where there is nothing to multiply.
// Formats: a, b rows and columns side by side, the first lowest, signed WIDTH bits each; sums signed ACC_WIDTH bits.
// Latency: the product of what the first row and column are given in cycle t is in cell (i, j) from t + i + j + 2 on.
// Drain: sum is the accumulator of the cell that row and column select in that cycle, one a cycle.
module systolic_tile #(
    parameter ROWS = 4,
    parameter COLUMNS = 4,
    parameter WIDTH = 8,
    parameter ACC_WIDTH = 32
) (
    input logic clk,
    input logic rst,
    input logic clear,
    input logic [ROWS*WIDTH-1:0] a,
    input logic [COLUMNS*WIDTH-1:0] b,
    input logic [$clog2(ROWS)-1:0] row,
    input logic [$clog2(COLUMNS)-1:0] column,
    output logic [ACC_WIDTH-1:0] sum
);
  logic [ROWS*COLUMNS*ACC_WIDTH-1:0] sums;
  assign sum = sums[(row*COLUMNS+column)*ACC_WIDTH+:ACC_WIDTH];

  genvar i, j;
  generate
    for (i = 0; i < ROWS; i = i + 1) begin : rows
      for (j = 0; j < COLUMNS; j = j + 1) begin : columns
        logic [WIDTH-1:0] left, top, right, bottom;
        logic first, passed;
        if (j == 0) assign left = a[i*WIDTH+:WIDTH];
        else assign left = rows[i].columns[j-1].right;
        if (i == 0) assign top = b[j*WIDTH+:WIDTH];
        else assign top = rows[i-1].columns[j].bottom;
        if (j > 0) assign first = rows[i].columns[j-1].passed;
        else if (i > 0) assign first = rows[i-1].columns[j].passed;
        else assign first = clear;
        // Synthesis joins these with the operand registers of the cell.
        always_ff @(posedge clk) {right, bottom, passed} <= rst ? '0 : {left, top, first};
        mac_int #(
            .WIDTH(WIDTH),
            .ACC_WIDTH(ACC_WIDTH)
        ) cell_ij (
            .clk(clk),
            .rst(rst),
            .clear(first),
            .a(left),
            .b(top),
            .acc(sums[(i*COLUMNS+j)*ACC_WIDTH+:ACC_WIDTH])
        );
      end
    end
  endgenerate
endmodule
