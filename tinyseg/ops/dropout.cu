// dropout: see dropout.py. Nothing is kept: forward and backward draw the same words.

// One thread: the number of this call, and one more for the next.
KERNEL(32, 1) void dropout_next(int64 *calls, uint64 *offset) {
    if (threadIdx.x == 0) {
        *offset = *calls;
        *calls += 1;
    }
}

// One thread, four elements, one call of the generator. `threshold` is up to 2^32.
KERNEL(256, 4) void dropout_elements(const scalar *x, scalar *y, int64 n, uint64 seed,
                                     const uint64 *offset, uint64 threshold, real scale) {
    int64 i = 4 * thread_number();
    quad values = load_quad(x + i, n - i);
    Words words = philox(i / 4, *offset, seed);
    for (int k = 0; k < 4; ++k)
        values.v[k] = words.w[k] >= threshold ? values.v[k] * scale : 0;
    store_quad(y + i, values, n - i);
}

// Whole channels: element i is in channel i % channels of image i / in_image, which has a word of its own.
KERNEL(256, 4) void dropout_channels(const scalar *x, scalar *y, int64 n, int64 in_image, int channels, uint64 seed,
                                     const uint64 *offset, uint64 threshold, real scale) {
    int64 i = thread_number();
    if (i >= n)
        return;
    uint64 number = i / in_image * channels + i % channels;
    Words words = philox(number / 4, *offset, seed);
    int word = int(number % 4);
    uint32 u = word == 0 ? words.w[0] : word == 1 ? words.w[1] : word == 2 ? words.w[2] : words.w[3];
    y[i] = u >= threshold ? x[i] * scale : 0;
}
