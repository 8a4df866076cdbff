// Stochastic gradient descent: see sgd.py. A row is parameter, gradient, velocity.

KERNEL(256, 4) void sgd_update(const int64 *table, int rows, const scalar *numbers) {
    Piece piece = piece_of_block(table, rows);
    numbers += 4 * piece.row;
    scalar lr = numbers[0], momentum = numbers[1], decay = numbers[2];
    bool nesterov = numbers[3] != 0;
    scalar *p = array_of(piece, 0), *v = array_of(piece, 2);
    const scalar *g = array_of(piece, 1);
    for (int64 i = piece.first + threadIdx.x; i < piece.last; i += blockDim.x) {
        scalar slope = g[i] + decay * p[i];
        scalar velocity = momentum * v[i] + slope;
        v[i] = velocity;
        p[i] -= lr * (nesterov ? slope + momentum * velocity : velocity);
    }
}
