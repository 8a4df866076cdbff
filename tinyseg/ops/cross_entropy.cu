// Softmax cross-entropy: see cross_entropy.py. A run of `width` lanes, a power of 2, shares the scores of a pixel. Lanes
// without a pixel go along, since sums need the whole warp.

constexpr int HELD = 8;  // scores of a lane that stay in registers; where there are more, the others are read again

struct Scores {
    const scalar *of_pixel;
    int first, last, step;  // the lane's scores are first, first + step, ... below `last`
    scalar held[HELD];
};

// visit(score, c) for each of them.
template <typename Visit> DEVICE void for_each(const Scores &z, Visit visit) {
#pragma unroll
    for (int k = 0; k < HELD; ++k)
        if (z.first + k * z.step < z.last)
            visit(z.held[k], z.first + k * z.step);
    for (int c = z.first + HELD * z.step; c < z.last; c += z.step)
        visit(z.of_pixel[c], c);
}

DEVICE Scores scores_of(const scalar *logits, int64 pixel, bool inside, int C, int width) {
    Scores z = {logits + pixel * C, int(threadIdx.x) % width, inside ? C : 0, width};
#pragma unroll
    for (int k = 0; k < HELD; ++k)
        z.held[k] = z.first + k * width < z.last ? z.of_pixel[z.first + k * width] : scalar(0);
    return z;
}

DEVICE scalar largest(const Scores &z) {
    scalar top = -INF;
    for_each(z, [&](scalar score, int) { top = larger(top, score); });
    return lanes_max(top, z.step);
}

DEVICE scalar sum_of_exponentials(const Scores &z, scalar top) {
    scalar total = 0;
    for_each(z, [&](scalar score, int) { total += exp(score - top); });
    return lanes_sum(total, z.step);
}

// Each block takes every gridDim.x-th group of pixels. partial: (2, blocks), sums of the losses and of the weights.
KERNEL(256, 3) void cross_entropy_forward(const scalar *logits, const int64 *labels, const scalar *weights,
                                          int64 pixels, int C, int width, double *partial) {
    int group = 256 / width;
    double losses = 0, total_weight = 0;
    for (int64 start = int64(blockIdx.x) * group; start < pixels; start += int64(gridDim.x) * group) {
        int64 pixel = start + threadIdx.x / width;
        bool inside = pixel < pixels;
        Scores z = scores_of(logits, pixel, inside, C, width);
        scalar top = largest(z), log_total = log(sum_of_exponentials(z, top));
        if (inside && z.first == 0 && weights[pixel] != 0) {
            double weight = weights[pixel];
            double difference = double(top) - double(z.of_pixel[labels[pixel]]);  // exact, however large the scores
            losses += weight * (difference + double(log_total));
            total_weight += weight;
        }
    }
    store_sums(losses, total_weight, partial);
}

KERNEL(256, 3) void cross_entropy_backward(const scalar *dy, const double *scale, const scalar *logits,
                                           const int64 *labels, const scalar *weights, int64 pixels, int C, int width,
                                           scalar *dlogits) {
    int64 pixel = int64(blockIdx.x) * (256 / width) + threadIdx.x / width;
    bool inside = pixel < pixels;
    Scores z = scores_of(logits, pixel, inside, C, width);
    scalar top = largest(z), total = sum_of_exponentials(z, top);
    if (!inside)
        return;
    scalar weight = scalar(*dy * *scale * weights[pixel]), *result = dlogits + pixel * C;
    int64 label = labels[pixel];
    bool counts = weights[pixel] != 0;  // the scores of the others may be anything
    for_each(z, [&](scalar score, int c) {
        result[c] = counts ? weight * (exp(score - top) / total - (c == label)) : scalar(0);
    });
}
