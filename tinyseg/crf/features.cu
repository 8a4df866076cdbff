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

// The bytes nearest to 255 (x * std + mean), four numbers for each thread; mean and std are one for each channel.
KERNEL(256, 4) void visible_colours(const scalar *x, const scalar *mean, const scalar *std, int channels, uint8 *y,
                                    int64 n) {
    int64 i = 4 * thread_number();
    quad values = load_quad(x + i, n - i);
    for (int k = 0; k < 4; ++k)
        if (i + k < n) {
            int c = int((i + k) % channels);
            scalar colour = rint(255 * (values.v[k] * std[c] + mean[c]));
            y[i + k] = uint8(max(scalar(0), min(scalar(255), colour)));
        }
}
