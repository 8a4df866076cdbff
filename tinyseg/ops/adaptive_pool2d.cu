// Adaptive pooling: see adaptive_pool2d.py. Each row of the image is reduced to Q numbers first, then the rows of each
// bin: there are threads enough even for one image and one bin. One thread, one channel of one pixel of the result.

// Bin p of `count` over `size` cells: from begin(p) to end(p) - 1. With the two exchanged, the bins that hold a cell.
DEVICE int begin(int64 p, int count, int size) { return int(p * size / count); }
DEVICE int end(int64 p, int count, int size) { return int(((p + 1) * size + count - 1) / count); }

// x: N H W C, sums: N H Q C. `pixels` is N H Q.
KERNEL(256, 4) void row_sums(const scalar *x, int pixels, int C, int width, int W, int Q, double *sums) {
    Spot spot = spot_of_thread(width);
    if (spot.pixel >= pixels || spot.channel >= C)
        return;
    int q = spot.pixel % Q;
    int64 row = spot.pixel / Q;
    double total = 0;
    for (int w = begin(q, Q, W); w < end(q, Q, W); ++w)
        total += x[(row * W + w) * C + spot.channel];
    sums[int64(spot.pixel) * C + spot.channel] = total;
}

// sums: N H Q C, y: N P Q C. `pixels` is N P Q.
KERNEL(256, 4) void bin_means(const double *sums, int pixels, int C, int width, int H, int W, int P, int Q, scalar *y) {
    Spot spot = spot_of_thread(width);
    if (spot.pixel >= pixels || spot.channel >= C)
        return;
    int q = spot.pixel % Q, p = spot.pixel / Q % P;
    int64 n = spot.pixel / Q / P;
    double total = 0;
    for (int h = begin(p, P, H); h < end(p, P, H); ++h)
        total += sums[((n * H + h) * Q + q) * C + spot.channel];
    double cells = double(end(p, P, H) - begin(p, P, H)) * (end(q, Q, W) - begin(q, Q, W));
    y[int64(spot.pixel) * C + spot.channel] = scalar(total / cells);
}

KERNEL(256, 4) void avg_backward(const scalar *dy, int pixels, int C, int width, int H, int W, int P, int Q,
                                 scalar *dx) {
    Spot spot = spot_of_thread(width);
    if (spot.pixel >= pixels || spot.channel >= C)
        return;
    int w = spot.pixel % W, h = spot.pixel / W % H;
    int64 n = spot.pixel / W / H;
    double total = 0;
    for (int p = begin(h, H, P); p < end(h, H, P); ++p)
        for (int q = begin(w, W, Q); q < end(w, W, Q); ++q) {
            double cells = double(end(p, P, H) - begin(p, P, H)) * (end(q, Q, W) - begin(q, Q, W));
            total += dy[((n * P + p) * Q + q) * C + spot.channel] / cells;
        }
    dx[int64(spot.pixel) * C + spot.channel] = scalar(total);
}

// The first maximum of each row of a bin, and its position h * W + w. x: N H W C, maxima: N H Q C.
KERNEL(256, 4) void row_maxima(const scalar *x, int pixels, int C, int width, int H, int W, int Q, scalar *maxima,
                               int *positions) {
    Spot spot = spot_of_thread(width);
    if (spot.pixel >= pixels || spot.channel >= C)
        return;
    int q = spot.pixel % Q;
    int64 row = spot.pixel / Q;
    int first = begin(q, Q, W), where = first;
    scalar largest = x[(row * W + first) * C + spot.channel];
    for (int w = first + 1; w < end(q, Q, W); ++w) {
        scalar value = x[(row * W + w) * C + spot.channel];
        if (value > largest || (value != value && largest == largest)) {  // the first NaN wins
            largest = value;
            where = w;
        }
    }
    maxima[int64(spot.pixel) * C + spot.channel] = largest;
    positions[int64(spot.pixel) * C + spot.channel] = int(row % H) * W + where;
}

// The first maximum of each bin. maxima: N H Q C, y: N P Q C.
KERNEL(256, 4) void bin_maxima(const scalar *maxima, const int *positions, int pixels, int C, int width, int H, int P,
                               int Q, scalar *y, int *position) {
    Spot spot = spot_of_thread(width);
    if (spot.pixel >= pixels || spot.channel >= C)
        return;
    int q = spot.pixel % Q, p = spot.pixel / Q % P;
    int64 n = spot.pixel / Q / P;
    int first = begin(p, P, H);
    int64 where = ((n * H + first) * Q + q) * C + spot.channel;
    scalar largest = maxima[where];
    for (int h = first + 1; h < end(p, P, H); ++h) {
        int64 at = ((n * H + h) * Q + q) * C + spot.channel;
        scalar value = maxima[at];
        if (value > largest || (value != value && largest == largest)) {
            largest = value;
            where = at;
        }
    }
    y[int64(spot.pixel) * C + spot.channel] = largest;
    position[int64(spot.pixel) * C + spot.channel] = positions[where];
}

KERNEL(256, 4) void max_backward(const scalar *dy, const int *position, int pixels, int C, int width, int H, int W,
                                 int P, int Q, scalar *dx) {
    Spot spot = spot_of_thread(width);
    if (spot.pixel >= pixels || spot.channel >= C)
        return;
    int w = spot.pixel % W, h = spot.pixel / W % H;
    int64 n = spot.pixel / W / H;
    scalar total = 0;
    for (int p = begin(h, H, P); p < end(h, H, P); ++p)
        for (int q = begin(w, W, Q); q < end(w, W, Q); ++q) {
            int64 at = ((n * P + p) * Q + q) * C + spot.channel;
            total += position[at] == h * W + w ? dy[at] : 0;
        }
    dx[int64(spot.pixel) * C + spot.channel] = total;
}
