// Linear maps that treat rows and columns separately: see separable.py. A thread makes WIDTH neighbouring channels of one
// column in ROWS rows of the result, one after the other: what it knows of the column serves it for all.
//
// TAPS: how many sources each row and column has. The compiler knows it then, and lets many loads begin at once; with
// 0 it is given by the launch.

constexpr int ROWS = 4;

// y[n, p, q, c] = sum over i, j of
//     row_weight[p, i] * column_weight[q, j] * x[n, row_source[p, i], column_source[q, j], c]
// A source of -1 is none.
KERNEL(256, 3) void combine(const scalar *x, const int *row_source, const real *row_weight, const int *column_source,
                            const real *column_weight, int row_taps, int column_taps, int C, int H, int line_length,
                            int P, int Q, scalar *y) {
    if (TAPS)
        row_taps = column_taps = TAPS;
    uint32 packs = C / WIDTH, place = blockIdx.y * 256 + threadIdx.x;  // in a row
    int q = place / packs, c = (place - q * packs) * WIDTH;
    if (q >= Q)
        return;
    int groups = (P + ROWS - 1) / ROWS, n = blockIdx.x / groups, first = (blockIdx.x - n * groups) * ROWS;
    const scalar *image = x + int64(n) * H * line_length + c;
    scalar *result = y + ((int64(n) * P + first) * Q + q) * C + c;
    column_source += int64(q) * column_taps;
    column_weight += int64(q) * column_taps;
#pragma unroll 1
    for (int p = first; p < min(first + ROWS, P); ++p) {
        pack<WIDTH, real> total = {};
#pragma unroll 2
        for (int i = 0; i < row_taps; ++i) {
            int h = row_source[int64(p) * row_taps + i];
            real weight = row_weight[int64(p) * row_taps + i];
            const scalar *line = image + int64(max(h, 0)) * line_length;
            pack<WIDTH, real> of_line = {};
#pragma unroll
            for (int j = 0; j < column_taps; ++j) {
                int w = column_source[j];
                real share = column_weight[j];
                pack<WIDTH> cell = load<WIDTH>(line + max(w, 0) * C);
                for (int k = 0; k < WIDTH; ++k)  // what is no source may be infinite
                    of_line.v[k] += w >= 0 ? share * cell.v[k] : real(0);
            }
            for (int k = 0; k < WIDTH; ++k)
                total.v[k] += h >= 0 ? weight * of_line.v[k] : real(0);
        }
        store<WIDTH>(result, total);
        result += int64(Q) * C;
    }
}
