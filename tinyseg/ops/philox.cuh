// The random words of dropout and of what else draws at random: see dropout.py.

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
