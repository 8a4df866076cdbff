// The norm of all gradients, and the gradients shortened: see clipping.py. A row is gradient, shortened gradient.

// The sum of squares of each piece.
KERNEL(256, 4) void squares(const int64 *table, int rows, double *partial) {
    SHARED double scratch[8];
    Piece piece = piece_of_block(table, rows);
    const scalar *g = array_of(piece, 0);
    double sum = 0;
    for (int64 i = piece.first + threadIdx.x; i < piece.last; i += blockDim.x)
        sum += double(g[i]) * double(g[i]);
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0)
        partial[blockIdx.x] = sum;
}

// One block: the norm, and the factor that brings it down to max_norm. A norm that is not finite changes nothing.
KERNEL(256, 4) void norm_and_factor(const double *partial, int pieces, double max_norm, double *norm, scalar *factor) {
    SHARED double scratch[8];
    double sum = 0;
    for (int i = threadIdx.x; i < pieces; i += blockDim.x)
        sum += partial[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) {
        *norm = sqrt(sum);
        *factor = *norm > max_norm && *norm < INF ? scalar(max_norm / *norm) : 1;
    }
}

KERNEL(256, 4) void shorten(const int64 *table, int rows, const scalar *factor) {
    Piece piece = piece_of_block(table, rows);
    const scalar *g = array_of(piece, 0);
    scalar *shortened = array_of(piece, 1), by = *factor;
    for (int64 i = piece.first + threadIdx.x; i < piece.last; i += blockDim.x)
        shortened[i] = g[i] * by;
}
