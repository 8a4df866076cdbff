// What the dual-task loss does beyond blur, gradient and Gumbel softmax: see dual_task_loss.py. i is the number of an
// element, i / C its pixel. A pixel is seen with weight 1, ignored with 0, and of a wrong label with NaN.

const double HALF_ROOT = 0.70710678118654752;

// 0 where a pixel is ignored, and not a product: what stands there may be NaN.
KERNEL(256, 4) void keep_seen(const scalar *x, const scalar *seen, int64 n, int C, scalar *y) {
    int64 i = thread_number();
    if (i < n)
        y[i] = seen[i / C] != 0 ? x[i] : 0;
}

KERNEL(256, 4) void one_hot(const int64 *labels, const scalar *seen, int64 n, int C, scalar *truth) {
    int64 i = thread_number();
    if (i < n)
        truth[i] = (labels[i / C] == i % C) * seen[i / C];
}

// How far the magnitudes differ where there is a border in one of them, and 0 elsewhere. NaN counts as a border.
struct Difference {
    scalar by;
    bool at_border;
};

DEVICE Difference difference(const scalar *magnitude, const scalar *truth, const scalar *seen, scalar threshold,
                             int64 i, int C) {
    scalar half_root = scalar(HALF_ROOT);
    bool at_border = seen[i / C] != 0 && !(half_root * larger(magnitude[i], truth[i]) <= threshold);
    return {at_border ? half_root * (magnitude[i] - truth[i]) : 0, at_border};
}

// Each block takes every gridDim.x-th run of 256 elements. partial: (2, blocks), sums of the losses and the size of S.
KERNEL(256, 4) void dual_task_forward(const scalar *magnitude, const scalar *truth, const scalar *seen,
                                      scalar threshold, int64 n, int C, double *partial) {
    double losses = 0, size = 0;
    for (int64 i = thread_number(); i < n; i += int64(gridDim.x) * 256) {
        Difference d = difference(magnitude, truth, seen, threshold, i, C);
        losses += fabs(double(d.by));
        size += d.at_border;
    }
    store_sums(losses, size, partial);
}

// The derivative by the magnitude. scale: 1 / |S|, or 0.
KERNEL(256, 4) void dual_task_slope(const scalar *magnitude, const scalar *truth, const scalar *seen,
                                    const double *scale, scalar threshold, int64 n, int C, scalar *slope) {
    int64 i = thread_number();
    if (i >= n)
        return;
    scalar by = difference(magnitude, truth, seen, threshold, i, C).by, step = scalar(HALF_ROOT * *scale);
    slope[i] = by > 0 ? step : by < 0 ? -step : by;  // NaN stays
}
