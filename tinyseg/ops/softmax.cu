// softmax and log_softmax: see softmax.py. A run of `width` lanes, a power of 2, shares the channels of a pixel.
// Neighbouring lanes read neighbouring channels. Lanes without a pixel go along, since sums need the whole warp.

struct Share {
    const scalar *from;  // the pixel's first channel
    int64 offset;        // of that from the first pixel's
    int first;           // the lane's channels are first, first + width, ...
};

DEVICE Share share_of(const scalar *x, int64 pixels, int channels, int width) {
    int64 pixel = int64(blockIdx.x) * (blockDim.x / width) + threadIdx.x / width;
    int64 offset = pixel * channels;
    return {x + offset, offset, pixel < pixels ? int(threadIdx.x) % width : channels};
}

DEVICE real largest(Share s, int channels, int width) {
    real top = -INF;
    for (int c = s.first; c < channels; c += width)
        top = larger(top, real(s.from[c]));
    return lanes_max(top, width);
}

DEVICE real sum_of_exponentials(Share s, int channels, int width, real top) {
    real total = 0;
    for (int c = s.first; c < channels; c += width)
        total += exp(s.from[c] - top);
    return lanes_sum(total, width);
}

KERNEL(256, 4) void softmax_forward(const scalar *x, scalar *y, int64 pixels, int channels, int width) {
    Share s = share_of(x, pixels, channels, width);
    real top = largest(s, channels, width), total = sum_of_exponentials(s, channels, width, top);
    for (int c = s.first; c < channels; c += width)
        y[s.offset + c] = exp(s.from[c] - top) / total;
}

KERNEL(256, 4) void log_softmax_forward(const scalar *x, scalar *y, int64 pixels, int channels, int width) {
    Share s = share_of(x, pixels, channels, width);
    real top = largest(s, channels, width), log_total = log(sum_of_exponentials(s, channels, width, top));
    // The largest score goes first: added to the logarithm, a large number would swallow digits of a small one.
    for (int c = s.first; c < channels; c += width)
        y[s.offset + c] = (s.from[c] - top) - log_total;
}

KERNEL(256, 4) void softmax_backward(const scalar *dy, const scalar *y, scalar *dx, int64 pixels, int channels,
                                     int width) {
    Share s = share_of(dy, pixels, channels, width);
    real product = 0;
    for (int c = s.first; c < channels; c += width)
        product += s.from[c] * y[s.offset + c];
    product = lanes_sum(product, width);
    for (int c = s.first; c < channels; c += width)
        dx[s.offset + c] = y[s.offset + c] * (s.from[c] - product);
}

KERNEL(256, 4) void log_softmax_backward(const scalar *dy, const scalar *y, scalar *dx, int64 pixels, int channels,
                                         int width) {
    Share s = share_of(dy, pixels, channels, width);
    real total = 0;
    for (int c = s.first; c < channels; c += width)
        total += s.from[c];
    total = lanes_sum(total, width);
    for (int c = s.first; c < channels; c += width)
        dx[s.offset + c] = s.from[c] - exp(real(y[s.offset + c])) * total;
}
