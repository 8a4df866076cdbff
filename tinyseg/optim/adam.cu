// Adam and AdamW: see adam.py. A row is parameter, gradient, mean, square.

KERNEL(256, 4) void adam_update(const int64 *table, int rows, const scalar *numbers) {
    Piece piece = piece_of_block(table, rows);
    numbers += 7 * piece.row;
    scalar rate = numbers[0], root = numbers[1], new1 = numbers[2], new2 = numbers[3];
    scalar eps = numbers[4], decay = numbers[5], shrink = numbers[6];
    scalar *p = array_of(piece, 0), *m = array_of(piece, 2), *v = array_of(piece, 3);
    const scalar *g = array_of(piece, 1);
    for (int64 i = piece.first + threadIdx.x; i < piece.last; i += blockDim.x) {
        scalar value = p[i] * shrink;
        scalar slope = g[i] + decay * value;
        scalar mean = m[i] + new1 * (slope - m[i]);
        scalar square = v[i] + new2 * (slope * slope - v[i]);
        m[i] = mean;
        v[i] = square;
        p[i] = value - rate * mean / (root * sqrt(square) + eps);
    }
}
