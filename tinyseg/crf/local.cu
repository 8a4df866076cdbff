// The filter with a window: see local.py. The window has `side` = 2 radius + 1 pixels along each side.

// weights (H W, side * side): one thread, one of them.
KERNEL(256, 4) void local_weights(const scalar *features, int height, int width, int d, int side, bool include_self,
                                  scalar *weights) {
    int64 number = thread_number(), i = number / (side * side);
    if (i >= int64(height) * width)
        return;
    int tap = int(number - i * side * side), row = int(i / width), column = int(i - int64(row) * width);
    int other_row = row + tap / side - side / 2, other_column = column + tap % side - side / 2;
    bool is_inside = other_row >= 0 && other_row < height && other_column >= 0 && other_column < width;
    if (!is_inside || (!include_self && tap == side * side / 2)) {
        weights[number] = 0;
        return;
    }
    const scalar *own = features + i * d, *other = features + (int64(other_row) * width + other_column) * d;
    scalar distance = 0;
    for (int k = 0; k < d; ++k)
        distance += (own[k] - other[k]) * (own[k] - other[k]);
    weights[number] = exp(scalar(-0.5) * distance);
}

// y: one thread, WIDTH neighbouring labels of one pixel.
KERNEL(256, 3) void local_apply(const scalar *x, const scalar *weights, int height, int width, int L, int side,
                                scalar *y) {
    int64 number = thread_number();
    int packs = L / WIDTH;
    int64 i = number / packs;
    if (i >= int64(height) * width)
        return;
    int label = int(number - i * packs) * WIDTH, row = int(i / width), column = int(i - int64(row) * width);
    pack<WIDTH> sum;
    for (int k = 0; k < WIDTH; ++k)
        sum.v[k] = 0;
    for (int other_row = max(0, row - side / 2); other_row <= min(height - 1, row + side / 2); ++other_row)
#pragma unroll 2
        for (int other = max(0, column - side / 2); other <= min(width - 1, column + side / 2); ++other) {
            int tap = (other_row - row + side / 2) * side + other - column + side / 2;
            scalar weight = weights[i * side * side + tap];
            pack<WIDTH> given = load<WIDTH>(x + (int64(other_row) * width + other) * L + label);
            for (int k = 0; k < WIDTH; ++k)
                sum.v[k] += weight * given.v[k];
        }
    store<WIDTH>(y + i * L + label, sum);
}
