// Small things that the CRF does with arrays: see arrays.py.

// One thread, four elements.
KERNEL(256, 4) void fill(scalar value, scalar *y, int64 n) {
    int64 i = 4 * thread_number();
    store_quad(y + i, {{value, value, value, value}}, n - i);
}

// 1 / (norm + tiny), or the square root of it.
KERNEL(256, 4) void inverse_norm(const scalar *norm, scalar tiny, bool root, scalar *y, int64 n) {
    int64 i = 4 * thread_number();
    quad values = load_quad(norm + i, n - i);
    for (int k = 0; k < 4; ++k) {
        scalar inverse = 1 / (values.v[k] + tiny);
        values.v[k] = root ? sqrt(inverse) : inverse;
    }
    store_quad(y + i, values, n - i);
}

// factor * log(x), of a number too small that of the smallest, of NaN NaN.
KERNEL(256, 4) void logarithm(const scalar *x, scalar smallest, scalar factor, scalar *y, int64 n) {
    int64 i = 4 * thread_number();
    quad values = load_quad(x + i, n - i);
    for (int k = 0; k < 4; ++k)
        values.v[k] = factor * log(larger(values.v[k], smallest));
    store_quad(y + i, values, n - i);
}

// For each column the largest number and the largest of the negative ones' opposites, NaN if one is NaN: found
// (2, columns, warps), a part of the rows for each warp. blockIdx.y is the column.
KERNEL(256, 4) void column_ranges(const scalar *x, int64 rows, int columns, double *found) {
    double high = -INF, low = -INF;
    int64 threads = int64(gridDim.x) * blockDim.x;
    for (int64 row = thread_number(); row < rows; row += threads) {
        double value = x[row * columns + blockIdx.y];
        high = larger(high, value);
        low = larger(low, -value);
    }
    high = lanes_max(high, 32);
    low = lanes_max(low, 32);
    int64 warps = threads / 32, warp = thread_number() / 32;
    if (threadIdx.x % 32 == 0) {
        found[blockIdx.y * warps + warp] = high;
        found[(int64(columns) + blockIdx.y) * warps + warp] = low;
    }
}
