// Rows of arrays that one launch works on: see rows.py. A block takes one piece of one row.

const int PIECE = 4096;
const int COLUMNS = 6;  // the row's first piece, its elements, and the addresses of up to four arrays

struct Piece {
    int row;
    const int64 *columns;
    int64 first, last;  // elements
};

DEVICE scalar *array_of(const Piece &piece, int number) { return (scalar *)piece.columns[2 + number]; }

DEVICE Piece piece_of_block(const int64 *table, int rows) {
    int low = 0, high = rows;  // the row is one of low .. high - 1
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (table[middle * COLUMNS] <= blockIdx.x)
            low = middle;
        else
            high = middle;
    }
    const int64 *columns = table + low * COLUMNS;
    int64 first = (blockIdx.x - columns[0]) * PIECE, last = first + PIECE;
    return {low, columns, first, last < columns[1] ? last : columns[1]};
}
