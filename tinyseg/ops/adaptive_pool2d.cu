// Adaptive pooling: see adaptive_pool2d.py. Each row of the image is reduced to Q numbers first, then the rows of each
// bin: there are threads enough even for one image and one bin. One thread, one channel of one pixel of the result.

// Bin p of `count` over `size` cells: from begin(p) to end(p) - 1. With the two exchanged, the bins that hold a cell.
DEVICE int begin(int64 p, int count, int size) { return int(p * size / count); }
DEVICE int end(int64 p, int count, int size) { return int(((p + 1) * size + count - 1) / count); }

// The rows of all images are counted through: n is the number of one.
DEVICE Place place_in_rows(int pixels, int C, int width, int Q) { return place_of_thread(pixels, C, width, 1, Q); }

// ------------------------------------------------------------------------------------- both ways to reduce a bin

// The cells of a bin in one direction: `count` of them, `step` elements apart.
struct Bin {
    int first, count;
    int64 at, step;
};

// Of a row: x is N H W C, and the result N H Q C.
DEVICE Bin bin_of_row(const Place &here, int C, int W, int Q) {
    int first = begin(here.column, Q, W);
    return {first, end(here.column, Q, W) - first, (int64(here.n) * W + first) * C + here.c, C};
}

// Of the rows, already reduced: N H Q C, and the result N P Q C.
DEVICE Bin bin_of_rows(const Place &here, int C, int H, int P, int Q) {
    int first = begin(here.row, P, H);
    int64 step = int64(Q) * C;
    return {first, end(here.row, P, H) - first, (int64(here.n) * H + first) * step + here.column * C + here.c, step};
}

template <typename T> DEVICE double sum(const T *x, const Bin &bin) {
    double total = 0;
    for (int k = 0; k < bin.count; ++k)
        total += x[bin.at + k * bin.step];
    return total;
}

// The number of the first maximum among the cells of the bin.
DEVICE int first_maximum(const scalar *x, const Bin &bin) {
    int where = 0;
    scalar largest = x[bin.at];
    for (int k = 1; k < bin.count; ++k) {
        scalar value = x[bin.at + k * bin.step];
        if (is_larger(value, largest)) {
            largest = value;
            where = k;
        }
    }
    return where;
}

// The sum of share(at, p, q) over the results that have the cell in their bin; `at` is where they stand in N P Q C.
template <typename Share>
DEVICE scalar gathered(const Place &cell, int C, int H, int W, int P, int Q, const Share &share) {
    double total = 0;
    for (int p = begin(cell.row, H, P); p < end(cell.row, H, P); ++p)
        for (int q = begin(cell.column, W, Q); q < end(cell.column, W, Q); ++q)
            total += share(((int64(cell.n) * P + p) * Q + q) * C + cell.c, p, q);
    return scalar(total);
}

// --------------------------------------------------------------------------------------------------------- means

DEVICE double cells_of_bin(int p, int q, int H, int W, int P, int Q) {
    return double(end(p, P, H) - begin(p, P, H)) * (end(q, Q, W) - begin(q, Q, W));
}

// `pixels` is N H Q.
KERNEL(256, 4) void row_sums(const scalar *x, int pixels, int C, int width, int W, int Q, double *sums) {
    Place here = place_in_rows(pixels, C, width, Q);
    if (here.inside)
        sums[here.at] = sum(x, bin_of_row(here, C, W, Q));
}

// `pixels` is N P Q.
KERNEL(256, 4) void bin_means(const double *sums, int pixels, int C, int width, int H, int W, int P, int Q, scalar *y) {
    Place here = place_of_thread(pixels, C, width, P, Q);
    if (here.inside)
        y[here.at] =
            scalar(sum(sums, bin_of_rows(here, C, H, P, Q)) / cells_of_bin(here.row, here.column, H, W, P, Q));
}

KERNEL(256, 4) void avg_backward(const scalar *dy, int pixels, int C, int width, int H, int W, int P, int Q,
                                 scalar *dx) {
    Place here = place_of_thread(pixels, C, width, H, W);
    if (here.inside)
        dx[here.at] = gathered(here, C, H, W, P, Q, [=](int64 at, int p, int q) {
            return dy[at] / cells_of_bin(p, q, H, W, P, Q);
        });
}

// ------------------------------------------------------------------------- maxima, and their positions h * W + w

KERNEL(256, 4) void row_maxima(const scalar *x, int pixels, int C, int width, int H, int W, int Q, scalar *maxima,
                               int *positions) {
    Place here = place_in_rows(pixels, C, width, Q);
    if (!here.inside)
        return;
    Bin bin = bin_of_row(here, C, W, Q);
    int where = first_maximum(x, bin);
    maxima[here.at] = x[bin.at + where * bin.step];
    positions[here.at] = here.n % H * W + bin.first + where;
}

KERNEL(256, 4) void bin_maxima(const scalar *maxima, const int *positions, int pixels, int C, int width, int H, int P,
                               int Q, scalar *y, int *position) {
    Place here = place_of_thread(pixels, C, width, P, Q);
    if (!here.inside)
        return;
    Bin bin = bin_of_rows(here, C, H, P, Q);
    int64 from = bin.at + first_maximum(maxima, bin) * bin.step;
    y[here.at] = maxima[from];
    position[here.at] = positions[from];
}

KERNEL(256, 4) void max_backward(const scalar *dy, const int *position, int pixels, int C, int width, int H, int W,
                                 int P, int Q, scalar *dx) {
    Place here = place_of_thread(pixels, C, width, H, W);
    int own = here.row * W + here.column;
    if (here.inside)
        dx[here.at] = gathered(here, C, H, W, P, Q, [=](int64 at, int, int) {
            return position[at] == own ? dy[at] : scalar(0);
        });
}
