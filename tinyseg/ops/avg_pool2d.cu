// Average pooling: see avg_pool2d.py. One thread, WIDTH neighbouring channels of one pixel of the result. Sums are
// made in float64. A window's mean is its sum times rows[p] * columns[q], the reciprocals of what it counts.

typedef pack<WIDTH, double> sums_of_thread;

KERNEL(256, 4) void avg_pool_forward(const scalar *x, const double *rows, const double *columns, int pixels, int C,
                                     int width, int H, int W, int P, int Q, int R, int S, int down, int right, int top,
                                     int left, scalar *y) {
    Place here = place_of_thread(pixels, C, width, P, Q, WIDTH);
    if (!here.inside)
        return;
    sums_of_thread total = {};
    visit_cells<4>(here, here.row * down - top, here.column * right - left, C, H, W, R, S, [&](int, int64 at) {
        pack<WIDTH> cell = load<WIDTH>(x + at);
        for (int k = 0; k < WIDTH; ++k)
            total.v[k] += cell.v[k];
    });
    double share = rows[here.row] * columns[here.column];
    for (int k = 0; k < WIDTH; ++k)
        total.v[k] *= share;
    store<WIDTH>(y + here.at, total);
}

// Each cell of the image asks the windows that hold it.
KERNEL(256, 4) void avg_pool_backward(const scalar *dy, const double *rows, const double *columns, int pixels, int C,
                                      int width, int H, int W, int P, int Q, int R, int S, int down, int right, int top,
                                      int left, scalar *dx) {
    Place here = place_of_thread(pixels, C, width, H, W, WIDTH);
    if (!here.inside)
        return;
    int i = here.row + top, j = here.column + left;
    int last_p = last_window(i, down, P), last_q = last_window(j, right, Q);
    sums_of_thread total = {};
    for (int p = last_p; p >= 0 && i - p * down < R; --p)
        for (int q = last_q; q >= 0 && j - q * right < S; --q) {
            double share = rows[p] * columns[q];
            pack<WIDTH> values = load<WIDTH>(dy + ((int64(here.n) * P + p) * Q + q) * C + here.c);
            for (int k = 0; k < WIDTH; ++k)
                total.v[k] += values.v[k] * share;
        }
    store<WIDTH>(dx + here.at, total);
}

// The same where windows lie side by side: one thread, all cells of one window. The windows of this launch, cover_p
// by cover_q, cover the image; cells of those beyond P and Q get zeros.
KERNEL(256, 4) void avg_pool_backward_apart(const scalar *dy, const double *rows, const double *columns, int cover_p,
                                            int cover_q, int pixels, int C, int width, int H, int W, int P, int Q,
                                            int R, int S, int down, int right, int top, int left, scalar *dx) {
    Place here = place_of_thread(pixels, C, width, cover_p, cover_q, WIDTH);
    if (!here.inside)
        return;
    pack<WIDTH> shares = {};
    if (here.row < P && here.column < Q) {
        double share = rows[here.row] * columns[here.column];
        shares = load<WIDTH>(dy + ((int64(here.n) * P + here.row) * Q + here.column) * C + here.c);
        for (int k = 0; k < WIDTH; ++k)
            shares.v[k] = scalar(shares.v[k] * share);
    }
    visit_cells(here, here.row * down - top, here.column * right - left, C, H, W, R, S,
                [&](int, int64 at) { store<WIDTH>(dx + at, shares); });
}
