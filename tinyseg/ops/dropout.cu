// dropout: see dropout.py. Nothing is kept: forward and backward draw the same words.

struct Words {
    uint32 w[4];
};

// Philox4x32-10: four random words from a counter of four words and a key of two.
DEVICE Words philox(uint64 block, uint64 offset, uint64 seed) {
    uint32 c0 = uint32(block), c1 = uint32(block >> 32), c2 = uint32(offset), c3 = uint32(offset >> 32);
    uint32 k0 = uint32(seed), k1 = uint32(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        uint32 high0 = high_word(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        uint32 high1 = high_word(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// One thread, four elements, one call of the generator. `threshold` is up to 2^32.
KERNEL(256, 4) void dropout_elements(const scalar *x, scalar *y, int64 n, uint64 seed, uint64 offset,
                                     uint64 threshold, scalar scale) {
    int64 i = 4 * thread_number();
    quad values = load_quad(x + i, n - i);
    Words words = philox(i / 4, offset, seed);
    for (int k = 0; k < 4; ++k)
        values.v[k] = words.w[k] >= threshold ? values.v[k] * scale : 0;
    store_quad(y + i, values, n - i);
}

// Whole channels: element i is in channel i % channels of image i / in_image, which has a word of its own.
KERNEL(256, 4) void dropout_channels(const scalar *x, scalar *y, int64 n, int64 in_image, int channels, uint64 seed,
                                     uint64 offset, uint64 threshold, scalar scale) {
    int64 i = thread_number();
    if (i >= n)
        return;
    uint64 number = i / in_image * channels + i % channels;
    Words words = philox(number / 4, offset, seed);
    int word = int(number % 4);
    uint32 u = word == 0 ? words.w[0] : word == 1 ? words.w[1] : word == 2 ? words.w[2] : words.w[3];
    y[i] = u >= threshold ? x[i] * scale : 0;
}
