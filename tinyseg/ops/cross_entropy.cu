// Softmax cross-entropy: see cross_entropy.py. A run of `width` lanes, a power of 2, shares the scores of a pixel. Lanes
// without a pixel go along, since sums need the whole warp.

struct Scores {
    const scalar *of_pixel;
    int first;  // the lane's scores are first, first + width, ... below `last`
    int last;
    scalar top;
};

DEVICE Scores scores_of(const scalar *logits, int64 pixel, bool inside, int C, int width) {
    Scores z = {logits + pixel * C, int(threadIdx.x) % width, inside ? C : 0, -INF};
    for (int c = z.first; c < z.last; c += width)
        z.top = larger(z.top, z.of_pixel[c]);
    z.top = lanes_max(z.top, width);
    return z;
}

// Each block takes every gridDim.x-th group of pixels. partial: (2, blocks), sums of the losses and of the weights.
KERNEL(256, 4) void cross_entropy_forward(const scalar *logits, const int64 *labels, const scalar *weights,
                                          int64 pixels, int C, int width, double *partial) {
    int group = 256 / width;
    double losses = 0, total_weight = 0;
    for (int64 start = int64(blockIdx.x) * group; start < pixels; start += int64(gridDim.x) * group) {
        int64 pixel = start + threadIdx.x / width;
        bool inside = pixel < pixels;
        Scores z = scores_of(logits, pixel, inside, C, width);
        scalar total = 0;
        for (int c = z.first; c < z.last; c += width)
            total += exp(z.of_pixel[c] - z.top);
        total = lanes_sum(total, width);
        if (inside && threadIdx.x % width == 0 && weights[pixel] != 0) {
            double weight = weights[pixel];
            double difference = double(z.top) - double(z.of_pixel[labels[pixel]]);  // exact, however large the scores
            losses += weight * (difference + log(double(total)));
            total_weight += weight;
        }
    }
    store_sums(losses, total_weight, partial);
}

KERNEL(256, 4) void cross_entropy_backward(const scalar *dy, const double *scale, const scalar *logits,
                                           const int64 *labels, const scalar *weights, int64 pixels, int C, int width,
                                           scalar *dlogits) {
    int64 pixel = int64(blockIdx.x) * (256 / width) + threadIdx.x / width;
    bool inside = pixel < pixels;
    Scores z = scores_of(logits, pixel, inside, C, width);
    scalar *result = dlogits + pixel * C;
    scalar total = 0;
    for (int c = z.first; c < z.last; c += width) {
        scalar e = exp(z.of_pixel[c] - z.top);
        result[c] = e;
        total += e;
    }
    total = lanes_sum(total, width);
    if (!inside)
        return;
    scalar weight = scalar(*dy * *scale * weights[pixel]);
    int64 label = labels[pixel];
    bool counts = weights[pixel] != 0;  // the scores of the others may be anything
    for (int c = z.first; c < z.last; c += width)
        result[c] = counts ? weight * (result[c] / total - (c == label)) : 0;
}
