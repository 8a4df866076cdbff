// The magnitude of a gradient: see spatial_gradient.py. One thread, one channel of one pixel. The gradient is N H W 2C:
// its first C channels are the differences down the rows, the others those along a row.

KERNEL(256, 4) void magnitude_forward(const scalar *gradient, scalar smoothing, int pixels, int C, int width,
                                      scalar *norm, scalar *y) {
    Spot spot = spot_of_thread(width);
    int c = spot.channel;
    if (spot.pixel >= pixels || c >= C)
        return;
    const scalar *differences = gradient + int64(spot.pixel) * 2 * C + c;
    scalar v = differences[0], u = differences[C];
    scalar length = sqrt(v * v + u * u + smoothing * smoothing);
    int64 at = int64(spot.pixel) * C + c;
    norm[at] = length;
    y[at] = length - smoothing;
}

KERNEL(256, 4) void magnitude_backward(const scalar *dy, const scalar *gradient, const scalar *norm, int pixels, int C,
                                       int width, scalar *dgradient) {
    Spot spot = spot_of_thread(width);
    int c = spot.channel;
    if (spot.pixel >= pixels || c >= C)
        return;
    int64 at = int64(spot.pixel) * C + c, first = int64(spot.pixel) * 2 * C + c;
    scalar share = dy[at] / norm[at];
    dgradient[first] = gradient[first] * share;
    dgradient[first + C] = gradient[first + C] * share;
}
