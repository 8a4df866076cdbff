// Average pooling: see avg_pool2d.py. One thread, WIDTH neighbouring channels of one pixel of the result. Sums are
// made in float64. What each window counts comes in two tables: `rows` (P) and `columns` (Q).

KERNEL(256, 4) void avg_pool_forward(const scalar *x, const int *rows, const int *columns, int pixels, int C, int width,
                                     int H, int W, int P, int Q, int R, int S, int down, int right, int top, int left,
                                     scalar *y) {
    Spot spot = spot_of_thread(width);
    int c = spot.channel * WIDTH;
    if (spot.pixel >= pixels || c >= C)
        return;
    int q = spot.pixel % Q, p = spot.pixel / Q % P, n = spot.pixel / Q / P;
    int h0 = p * down - top, w0 = q * right - left;
    double total[WIDTH] = {};
    for (int h = max(0, h0); h < min(H, h0 + R); ++h)
        for (int w = max(0, w0); w < min(W, w0 + S); ++w) {
            pack<WIDTH> cell = load<WIDTH>(x + ((int64(n) * H + h) * W + w) * C + c);
            for (int k = 0; k < WIDTH; ++k)
                total[k] += cell.v[k];
        }
    double share = 1.0 / (double(rows[p]) * columns[q]);
    pack<WIDTH> mean;
    for (int k = 0; k < WIDTH; ++k)
        mean.v[k] = scalar(total[k] * share);
    store<WIDTH>(y + int64(spot.pixel) * C + c, mean);
}

// Each cell of the image asks the windows that cover it, those with p * down <= h + top < p * down + R.
KERNEL(256, 4) void avg_pool_backward(const scalar *dy, const int *rows, const int *columns, int pixels, int C,
                                      int width, int H, int W, int P, int Q, int R, int S, int down, int right, int top,
                                      int left, scalar *dx) {
    Spot spot = spot_of_thread(width);
    int c = spot.channel * WIDTH;
    if (spot.pixel >= pixels || c >= C)
        return;
    int i = spot.pixel / W % H + top, j = spot.pixel % W + left, n = spot.pixel / W / H;
    int first_p = i < R ? 0 : (i - R) / down + 1, last_p = min(P - 1, i / down);
    int first_q = j < S ? 0 : (j - S) / right + 1, last_q = min(Q - 1, j / right);
    double total[WIDTH] = {};
    for (int p = first_p; p <= last_p; ++p)
        for (int q = first_q; q <= last_q; ++q) {
            double share = 1.0 / (double(rows[p]) * columns[q]);
            pack<WIDTH> values = load<WIDTH>(dy + ((int64(n) * P + p) * Q + q) * C + c);
            for (int k = 0; k < WIDTH; ++k)
                total[k] += values.v[k] * share;
        }
    pack<WIDTH> gathered;
    for (int k = 0; k < WIDTH; ++k)
        gathered.v[k] = scalar(total[k]);
    store<WIDTH>(dx + int64(spot.pixel) * C + c, gathered);
}
