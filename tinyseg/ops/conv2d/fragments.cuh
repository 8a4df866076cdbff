// What kernels on tensor cores share: the numbers that a warp calculates, I x J pieces of 16 x 8.
//
// TERMS, for float: 1 multiplies numbers rounded to TF32, with 10 bits of mantissa. 3 splits each number into a
// large part and what is left, both TF32, and adds three of the four products:
//     a b = large(a) large(b) + large(a) small(b) + small(a) large(b)  + something below float's last bit.

template <int I, int J> struct Fragments {
    float v[I][J][4];  // four numbers of each lane, see mma_tf32
};

struct Left {
    uint32 large[4], small[4];  // 16 x 8 numbers of the left matrix
};

template <int J> struct Right {
    uint32 large[J][2], small[J][2];  // 8 x 8 J numbers of the right matrix
};

// Of three terms, the large one is rounded by hand: the instruction of to_tf32 has to spare NaN and infinity, and
// becomes several. Here NaN may carry over into the sign, and turn into zero; but then x - large is NaN. What is
// left needs no rounding: tensor cores leave out no more of it than float's last bit.
DEVICE void split(float x, uint32 &large, uint32 &small) {
    if (TERMS == 1) {
        large = to_tf32(x);
        return;
    }
    large = *reinterpret_cast<uint32 *>(&x) + 0x1000 & 0xffffe000;
    float left = x - *reinterpret_cast<float *>(&large);
    small = *reinterpret_cast<uint32 *>(&left);
}

// 16 x 8 numbers of the left matrix from shared memory. Lane i hands in where row i % 16 has its first four
// numbers (i < 16) or its last four; each four go as eight numbers of 2 bytes. `rounded`: they have been, to TF32.
template <bool rounded> DEVICE Left load_left(const float *run) {
    Left left;
    load_matrices<false>(left.large, run);
#pragma unroll
    for (int n = 0; n < 4; ++n)
        if (!rounded)
            split(*reinterpret_cast<float *>(&left.large[n]), left.large[n], left.small[n]);
    return left;
}

// Add a product to a row of pieces, the small terms first.
template <int J> DEVICE void multiply_pieces(float (&sums)[J][4], const Left &left, const Right<J> &right) {
    if (TERMS == 3) {
#pragma unroll
        for (int j = 0; j < J; ++j)
            mma_tf32(sums[j], left.small, right.large[j]);
#pragma unroll
        for (int j = 0; j < J; ++j)
            mma_tf32(sums[j], left.large, right.small[j]);
    }
#pragma unroll
    for (int j = 0; j < J; ++j)
        mma_tf32(sums[j], left.large, right.large[j]);
}

template <int I, int J> DEVICE void add(Fragments<I, J> &sums, const Fragments<I, J> &more) {
#pragma unroll
    for (int n = 0; n < I * J * 4; ++n)
        sums.v[n / 4 / J][n / 4 % J][n % 4] += more.v[n / 4 / J][n / 4 % J][n % 4];
}

// A lane has two neighbouring numbers in row g of a piece and two in row g + 8. It swaps two with the lane
// beside it, and has four in one row.
DEVICE pack<4, float> four_in_a_row(const float *v) {
    bool odd = threadIdx.x % 2;
    float first = shuffle_xor(odd ? v[0] : v[2], 1), second = shuffle_xor(odd ? v[1] : v[3], 1);
    if (odd)
        return {{first, second, v[2], v[3]}};
    return {{v[0], v[1], first, second}};
}
