// Gumbel noise: see gumbel_softmax.py. One thread, four elements, one call of the generator.

// -log(-log u) with u = (word + 1/2) / 2^32, which as a float would be 1 for the last of the words. Above one half, the
// logarithm is taken of 1 - t, where t has all its digits.
DEVICE scalar gumbel(uint32 word) {
    scalar unit = scalar(1) / 4294967296;
    scalar e = word >> 31 ? -log1p(-(scalar(~word) + scalar(0.5)) * unit) : -log((scalar(word) + scalar(0.5)) * unit);
    return -log(e);
}

// y = (x + noise) * factor
KERNEL(256, 4) void add_noise(const scalar *x, int64 n, uint64 seed, const uint64 *offset, scalar factor, scalar *y) {
    int64 i = 4 * thread_number();
    quad values = load_quad(x + i, n - i);
    Words words = philox(i / 4, *offset, seed);
    for (int k = 0; k < 4; ++k)
        values.v[k] = (values.v[k] + gumbel(words.w[k])) * factor;
    store_quad(y + i, values, n - i);
}
