// Convolution 3 x 3 with stride 1 on tensor cores, from patches of the image in shared memory: see halo_tiles.py.
//
// 256 threads, eight warps, calculate 16 x 16 pixels of 64 channels. They take 64 bytes of source channels at a
// time, 16 of float or 32 of bfloat16: the pixels with the halo that the taps reach, and the weights of all nine
// taps. The next channels are copied meanwhile. A warp makes 4 rows of 16 pixels by 32 channels.
//
// COLUMNS: 64, or 16 for few channels. Then a warp makes 2 rows of 16 pixels by 16 channels.

constexpr int RUN = 16 / sizeof(scalar), DEPTH = 4 * RUN;  // numbers that one copy brings; channels at a time
constexpr int SIDE = 16, TAPS = 3, THREADS = 256;
constexpr int I = COLUMNS == 64 ? 4 : 2, J = COLUMNS == 64 ? 4 : 2;  // pieces of a warp: 16 pixels, 8 channels
constexpr int SIDE_BY_SIDE = COLUMNS / (8 * J);                      // warps along channels
constexpr int WEIGHTS = TAPS * TAPS * DEPTH * COLUMNS;  // numbers
constexpr int MOST_PIXELS = 400;                        // of a patch: 20 x 20

// A warp reads each number of a patch nine times, for all taps. So numbers of float that are to be TF32 are
// rounded where they are, by the threads that copied them. Of the weights it reads each once, and rounds it then.
constexpr bool ROUNDED = sizeof(scalar) == 4 && TERMS == 1;

// Against bank conflicts (see tensor_cores.cu), runs change places: run q of pixel number p of a patch is at
// q ^ (p / 2 % 4). Run q of the weights of channel c is at
DEVICE int moved(int q, int c) {
    if (sizeof(scalar) == 4)
        return q ^ (COLUMNS == 64 ? c % 4 : c / 2 % 2) * 2;
    return q ^ (COLUMNS == 64 ? c % 8 : c / 4 % 2);
}

// The products of one tap: of the patch's pixels from number `first` on, 16 side by side and I such rows, and of
// its weights from `column` on.
DEVICE void multiply(const float *patch, int patch_width, int first, const float *right, int column,
                     Fragments<I, J> &sums) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    Fragments<I, J> of_tap = {};
    Fragments<I, J> &to = TERMS == 3 ? of_tap : sums;
#pragma unroll
    for (int k = 0; k < DEPTH; k += 8) {
        Right<J> b;
#pragma unroll
        for (int j = 0; j < J; ++j)
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                float number = right[(k + 4 * n + t) * COLUMNS + column + 4 * moved(2 * j, t) + g];
                split(number, b.large[j][n], b.small[j][n]);
            }
#pragma unroll
        for (int i = 0; i < I; ++i) {
            int p = first + i * patch_width + lane % 16, run = k / 4 + lane / 16;
            Left a = load_left<ROUNDED>(patch + p * DEPTH + (run ^ p / 2 % 4) * 4);
            multiply_pieces(to.v[i], a, b);
        }
    }
    if (TERMS == 3)
        add(sums, of_tap);
}

DEVICE void multiply(const bfloat16 *patch, int patch_width, int first, const bfloat16 *right, int column,
                     Fragments<I, J> &sums) {
    int lane = threadIdx.x % 32, low = lane % 8, second = lane / 8 % 2, third = lane / 16;  // see tensor_cores.cu
#pragma unroll
    for (int k = 0; k < DEPTH; k += 16) {
        uint32 b[J / 2][4];
#pragma unroll
        for (int j = 0; j < J / 2; ++j) {
            int c = k + 8 * second + low;
            load_matrices<true>(b[j], right + c * COLUMNS + moved(column / 8 + 2 * j + third, c) * 8);
        }
#pragma unroll
        for (int i = 0; i < I; ++i) {
            int p = first + i * patch_width + 8 * second + low;
            uint32 a[4];
            load_matrices<false>(a, patch + p * DEPTH + (k / 8 + third ^ p / 2 % 4) * 8);
#pragma unroll
            for (int j = 0; j < J; ++j)
                mma_bfloat16(sums.v[i][j], a, b[j / 2] + j % 2 * 2);
        }
    }
}

// What the thread has copied of a patch.
DEVICE void round_own(float *patch, int pixels) {
    for (int i = threadIdx.x; i < 4 * pixels; i += THREADS) {
        pack<4, float> run = load<4>(patch + 4 * i);
        pack<4, uint32> rounded;
#pragma unroll
        for (int n = 0; n < 4; ++n)
            rounded.v[n] = to_tf32(run.v[n]);
        store<4>(reinterpret_cast<uint32 *>(patch + 4 * i), rounded);
    }
}

// out[n, h, v, g, o] = bias[g, o] + sum over r, s < 3 and c of  source[n, i, j, g, c] * weights[r, s, c, g, o],
//     i = h + row_origin + r * row_spread,   j = v + column_origin + s * column_spread.
// Groups have a multiple of RUN channels on both sides. Dynamic shared memory: two times a patch of DEPTH
// channels, and the weights. Blocks along x: channel tiles of all pixel tiles; along y: groups.
KERNEL(256, 1) void halo_product(
    const scalar *source, const scalar *weights, const real *bias, scalar *out, int in_group, int out_group,
    int source_height, int out_height, int row_origin, int row_spread,
    int source_width, int out_width, int column_origin, int column_spread) {
    DYNAMIC_SHARED(scalar, stages);
    SHARED int place[MOST_PIXELS];  // of each pixel of the patch in the source; -1 is outside
    int channel_tiles = (out_group + COLUMNS - 1) / COLUMNS;
    int tile_columns = (out_width + SIDE - 1) / SIDE, tile_rows = (out_height + SIDE - 1) / SIDE;
    int first_channel = blockIdx.x % channel_tiles * COLUMNS, group = blockIdx.y;
    Counter tile = counter_at(blockIdx.x / channel_tiles, tile_rows, tile_columns);  // image, row, column
    int first_row = tile.middle * SIDE, first_column = tile.low * SIDE;
    int in_channels = in_group * gridDim.y, out_channels = out_group * gridDim.y;

    // The patch begins at the tap with the lowest offset, which is the last one in the gradient of the data.
    int patch_height = SIDE + (TAPS - 1) * abs(row_spread), patch_width = SIDE + (TAPS - 1) * abs(column_spread);
    int top = row_origin + min(0, (TAPS - 1) * row_spread);
    int left = column_origin + min(0, (TAPS - 1) * column_spread);
    int patch_pixels = patch_height * patch_width, stage_size = patch_pixels * DEPTH + WEIGHTS;
    for (int p = threadIdx.x; p < patch_pixels; p += THREADS) {
        int h = first_row + top + p / patch_width, v = first_column + left + p % patch_width;
        bool inside = h >= 0 && h < source_height && v >= 0 && v < source_width;
        place[p] = inside ? (tile.high * source_height + h) * source_width + v : -1;
    }
    SYNC();

    // The thread copies the same run of weights for every tap, or for every fourth one.
    constexpr int TAP_RUNS = DEPTH * COLUMNS / RUN, TAPS_AT_ONCE = THREADS / TAP_RUNS;
    int64 tap_size = int64(in_group) * out_channels;
    auto copy_channels = [&](int first_c) {
        scalar *patch = stages + first_c / DEPTH % 2 * stage_size, *tap_weights = patch + patch_pixels * DEPTH;
        for (int i = threadIdx.x; i < 4 * patch_pixels; i += THREADS) {
            int p = i / 4, c = first_c + RUN * (i % 4 ^ p / 2 % 4);
            const scalar *from = source + int64(place[p]) * in_channels + group * in_group + c;
            copy_async<16>(patch + i * RUN, from, place[p] >= 0 && c < in_group);
        }
        int tap = threadIdx.x / TAP_RUNS, i = threadIdx.x % TAP_RUNS, row = i / (COLUMNS / RUN);
        int c = first_c + row, column = first_channel + RUN * moved(i % (COLUMNS / RUN), row);
        bool inside = c < in_group && column < out_group;
        int64 offset = int64(c) * out_channels + group * out_group + column + tap * tap_size;
#pragma unroll
        for (; tap < TAPS * TAPS; tap += TAPS_AT_ONCE) {
            copy_async<16>(tap_weights + (tap * TAP_RUNS + i) * RUN, weights + offset, inside);
            offset += TAPS_AT_ONCE * tap_size;
        }
    };

    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, warp = threadIdx.x / 32;
    int warp_row = warp / SIDE_BY_SIDE * I, warp_column = warp % SIDE_BY_SIDE * 8 * J;
    Fragments<I, J> sums = {};
    copy_channels(0);
    close_copies();
    for (int first_c = 0; first_c < in_group; first_c += DEPTH) {
        if (first_c + DEPTH < in_group)
            copy_channels(first_c + DEPTH);
        close_copies();
        wait_copies<1>();
        scalar *patch = stages + first_c / DEPTH % 2 * stage_size;
        if (ROUNDED)
            round_own(reinterpret_cast<float *>(patch), patch_pixels);
        SYNC();
        const scalar *tap_weights = patch + patch_pixels * DEPTH;
#pragma unroll 1
        for (int tap = 0; tap < TAPS * TAPS; ++tap) {
            int row = warp_row + row_origin - top + tap / TAPS * row_spread;
            int column = column_origin - left + tap % TAPS * column_spread;
            const scalar *right = tap_weights + tap * DEPTH * COLUMNS;
            multiply(patch, patch_width, row * patch_width + column, right, warp_column, sums);
        }
        SYNC();  // before the next channels come to where these are
    }

#pragma unroll
    for (int i = 0; i < I; ++i) {
        int h = first_row + warp_row + i, v = first_column + g + lane % 2 * 8;
        int64 offset = (int64(tile.high) * out_height + h) * out_width + v;
        scalar *to = out + offset * out_channels + group * out_group;
#pragma unroll
        for (int j = 0; j < J; ++j) {
            int channel = first_channel + warp_column + 8 * j + t / 2 * 4;
            pack<4, float> values = four_in_a_row(sums.v[i][j]);
            if (h >= out_height || v >= out_width || channel >= out_group)
                continue;
            if (bias) {
                pack<4, real> added = load<4>(bias + group * out_group + channel);
#pragma unroll
                for (int n = 0; n < 4; ++n)
                    values.v[n] += added.v[n];
            }
            store<4>(to + channel, values);
        }
    }
}
