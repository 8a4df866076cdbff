// RMSprop: see rmsprop.py. A row is parameter, gradient, square, velocity.

KERNEL(256, 4) void rmsprop_update(const int64 *table, int rows, const scalar *numbers) {
    Piece piece = piece_of_block(table, rows);
    numbers += 5 * piece.row;
    scalar lr = numbers[0], rest = numbers[1], eps = numbers[2], momentum = numbers[3], decay = numbers[4];
    scalar *p = array_of(piece, 0), *s = array_of(piece, 2), *v = array_of(piece, 3);
    const scalar *g = array_of(piece, 1);
    for (int64 i = piece.first + threadIdx.x; i < piece.last; i += blockDim.x) {
        scalar slope = g[i] + decay * p[i];
        scalar square = s[i] + rest * (slope * slope - s[i]);
        scalar velocity = momentum * v[i] + slope / (sqrt(square) + eps);
        s[i] = square;
        v[i] = velocity;
        p[i] -= lr * velocity;
    }
}
