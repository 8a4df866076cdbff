// Features of pixels: see features.py. One thread, one pixel: x, y and its colours, each over its bandwidth.

KERNEL(256, 4) void make_features(const scalar *image, const scalar *bandwidths, int pixels, int width, int d,
                                  scalar *features) {
    int64 i = thread_number();
    if (i >= pixels)
        return;
    int row = int(i) / width;
    features[i * d] = scalar(int(i) - row * width) / bandwidths[0];
    features[i * d + 1] = scalar(row) / bandwidths[1];
    for (int k = 2; k < d; ++k)
        features[i * d + k] = image[i * (d - 2) + k - 2] / bandwidths[k];
}
