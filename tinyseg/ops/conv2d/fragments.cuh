// What kernels on tensor cores share: fragments of 64 x 32 numbers for each warp, 4 x 4 pieces of 16 x 8.
//
// TERMS: 1 multiplies numbers rounded to TF32, with 10 bits of mantissa. 3 splits each number into a large part
// and what is left, both TF32, and adds three of the four products:
//     a b = large(a) large(b) + large(a) small(b) + small(a) large(b)  + something below float's last bit.

struct Fragments {
    float v[4][4][4];  // for the 16 rows i and the 8 columns j: four numbers of each lane, see mma_tf32
};

struct Left {
    uint32 large[4], small[4];  // 16 x 8 numbers of the left matrix
};

struct Right {
    uint32 large[4][2], small[4][2];  // 8 x 32 numbers of the right matrix
};

DEVICE void split(float x, uint32 &large, uint32 &small) {
    large = to_tf32(x);
    if (TERMS == 3)
        small = to_tf32(x - *reinterpret_cast<float *>(&large));
}

// Add a product to a row of pieces, the small terms first.
DEVICE void multiply_pieces(float (*sums)[4], const Left &left, const Right &right) {
    if (TERMS == 3) {
#pragma unroll
        for (int j = 0; j < 4; ++j)
            mma_tf32(sums[j], left.small, right.large[j]);
#pragma unroll
        for (int j = 0; j < 4; ++j)
            mma_tf32(sums[j], left.large, right.small[j]);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j)
        mma_tf32(sums[j], left.large, right.large[j]);
}

DEVICE void add(Fragments &sums, const Fragments &more) {
#pragma unroll
    for (int n = 0; n < 64; ++n)
        sums.v[n / 16][n / 4 % 4][n % 4] += more.v[n / 16][n / 4 % 4][n % 4];
}

// A lane has two neighbouring numbers in row g of a piece and two in row g + 8. It swaps two with the lane
// beside it, and has four in one row.
DEVICE pack<4> four_in_a_row(const float *v) {
    bool odd = threadIdx.x % 2;
    float first = shuffle_xor(odd ? v[0] : v[2], 1), second = shuffle_xor(odd ? v[1] : v[3], 1);
    if (odd)
        return {{first, second, v[2], v[3]}};
    return {{v[0], v[1], first, second}};
}
