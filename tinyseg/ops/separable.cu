// Linear maps that treat rows and columns separately: see separable.py. One thread, WIDTH neighbouring channels of one
// pixel of the result. The entries of row p are number row_start[p] to row_start[p + 1] - 1; columns likewise.

KERNEL(256, 4) void combine(const scalar *x, const int *row_start, const int *row_source, const real *row_weight,
                            const int *column_start, const int *column_source, const real *column_weight, int pixels,
                            int C, int width, int H, int W, int P, int Q, scalar *y) {
    Spot spot = spot_of_thread(width);
    int c = spot.channel * WIDTH;
    if (spot.pixel >= pixels || c >= C)
        return;
    int q = spot.pixel % Q, p = spot.pixel / Q % P, n = spot.pixel / Q / P;
    const scalar *image = x + int64(n) * H * W * C + c;
    pack<WIDTH, real> total = {};
    for (int j = column_start[q]; j < column_start[q + 1]; ++j) {
        pack<WIDTH, real> column = {};  // of the rows' combination
        for (int i = row_start[p]; i < row_start[p + 1]; ++i) {
            pack<WIDTH> cell = load<WIDTH>(image + (int64(row_source[i]) * W + column_source[j]) * C);
            for (int k = 0; k < WIDTH; ++k)
                column.v[k] += row_weight[i] * cell.v[k];
        }
        for (int k = 0; k < WIDTH; ++k)
            total.v[k] += column_weight[j] * column.v[k];
    }
    store<WIDTH>(y + int64(spot.pixel) * C + c, total);
}
