// Average pooling: see avg_pool2d.py. One thread, WIDTH neighbouring channels of one pixel of the result. Sums are
// made in float64. What each window counts comes in two tables: `rows` (P) and `columns` (Q).

KERNEL(256, 4) void avg_pool_forward(const scalar *x, const int *rows, const int *columns, int pixels, int C, int width,
                                     int H, int W, int P, int Q, int R, int S, int down, int right, int top, int left,
                                     scalar *y) {
    Place here = place_of_thread(pixels, C, width, P, Q, WIDTH);
    if (!here.inside)
        return;
    int h0 = here.row * down - top, w0 = here.column * right - left;
    double total[WIDTH] = {};
    for (int h = max(0, h0); h < min(H, h0 + R); ++h)
        for (int w = max(0, w0); w < min(W, w0 + S); ++w) {
            pack<WIDTH> cell = load<WIDTH>(x + ((int64(here.n) * H + h) * W + w) * C + here.c);
            for (int k = 0; k < WIDTH; ++k)
                total[k] += cell.v[k];
        }
    double share = 1.0 / (double(rows[here.row]) * columns[here.column]);
    pack<WIDTH> mean;
    for (int k = 0; k < WIDTH; ++k)
        mean.v[k] = scalar(total[k] * share);
    store<WIDTH>(y + here.at, mean);
}

// Each cell of the image asks the windows that hold it.
KERNEL(256, 4) void avg_pool_backward(const scalar *dy, const int *rows, const int *columns, int pixels, int C,
                                      int width, int H, int W, int P, int Q, int R, int S, int down, int right, int top,
                                      int left, scalar *dx) {
    Place here = place_of_thread(pixels, C, width, H, W, WIDTH);
    if (!here.inside)
        return;
    Range over_p = windows_of(here.row + top, R, down, P), over_q = windows_of(here.column + left, S, right, Q);
    double total[WIDTH] = {};
    for (int p = over_p.first; p <= over_p.last; ++p)
        for (int q = over_q.first; q <= over_q.last; ++q) {
            double share = 1.0 / (double(rows[p]) * columns[q]);
            pack<WIDTH> values = load<WIDTH>(dy + ((int64(here.n) * P + p) * Q + q) * C + here.c);
            for (int k = 0; k < WIDTH; ++k)
                total[k] += values.v[k] * share;
        }
    pack<WIDTH> gathered;
    for (int k = 0; k < WIDTH; ++k)
        gathered.v[k] = scalar(total[k]);
    store<WIDTH>(dx + here.at, gathered);
}
