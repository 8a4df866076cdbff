// Convolution as an implicit matrix product on tensor cores: see tensor_cores.py; implicit_gemm.cu is the same
// without them, and easier to begin with.
//
// 128 threads, four warps, calculate a tile of 128 rows by 64 columns in slices of 128 bytes along the sum: 32
// numbers of float, 64 of bfloat16. Each warp makes a quarter of 64 x 32 as 4 x 4 fragments of 16 x 8: an
// instruction multiplies 16 x 8 numbers of the left matrix by 8 x 8 of the right one (of bfloat16 16 x 16 by 16 x
// 8), and adds to a fragment. Three slices are in shared memory at the same time: while one is multiplied, the
// next two are on their way, without passing through registers.

constexpr int STAGES = 3, THREADS = 128;
constexpr int RUN = 16 / sizeof(scalar), DEPTH = 8 * RUN;  // numbers of one copy; of a slice along the sum
constexpr int LEFT = ROWS * DEPTH, SLICE = LEFT + DEPTH * COLUMNS;  // numbers

// Memory comes in 32 banks of 4 bytes, and 32 lanes are served at once if their banks differ. So runs change
// places within a row. Where a row has the number m, and is a piece of the sum, run q moves to q ^ (m % 8). Where
// it has the number k along the sum, and holds neighbouring rows or columns of the tile, it moves to
DEVICE int moved(int q, int k) { return sizeof(scalar) == 4 ? q ^ k % 4 * 2 : q ^ k % 8; }

// TURNED says whether the left slice has a row for each number k along the sum, or for each row of the tile.
template <bool TURNED> DEVICE void multiply(const float *left, const float *right, Fragments<4, 4> &sums) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, warp = threadIdx.x / 32;
    left += warp / 2 * 64 * (TURNED ? 1 : DEPTH);
    right += warp % 2 * 32;
    // Tensor cores add without rounding to the nearest. So only one slice is summed there, and the rest as usual.
    Fragments<4, 4> of_slice = {};
    Fragments<4, 4> &to = TERMS == 3 ? of_slice : sums;
#pragma unroll
    for (int k = 0; k < DEPTH; k += 8) {
        Right<4> b;
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int n = 0; n < 2; ++n)
                split(right[(k + 4 * n + t) * COLUMNS + (j ^ t) * 8 + g], b.large[j][n], b.small[j][n]);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            Left a;
            if (TURNED) {
#pragma unroll
                for (int n = 0; n < 4; ++n) {
                    int below = n % 2, along = k + n / 2 * 4 + t;  // by 8 rows
                    float number = left[along * ROWS + ((2 * i + below) ^ t) * 8 + g];
                    split(number, a.large[n], a.small[n]);
                }
            } else {
                int row = 16 * i + lane % 16, run = k / 4 + lane / 16;
                a = load_left<false>(left + row * DEPTH + (run ^ row % 8) * 4);
            }
            multiply_pieces(to.v[i], a, b);
        }
    }
    if (TERMS == 3)
        add(sums, of_slice);
}

template <bool TURNED> DEVICE void multiply(const bfloat16 *left, const bfloat16 *right, Fragments<4, 4> &sums) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, first_row = warp / 2 * 64, first_column = warp % 2 * 32;
    int low = lane % 8, second = lane / 8 % 2, third = lane / 16;  // the row of a matrix, and which of 2 x 2 it is
#pragma unroll
    for (int k = 0; k < DEPTH; k += 16) {
        uint32 b[2][4];  // two words each for two pieces, from one load
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            int along = k + 8 * second + low, run = first_column / 8 + 2 * j + third;
            load_matrices<true>(b[j], right + along * COLUMNS + (run ^ low) * 8);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            uint32 a[4];
            int row = first_row + 16 * i + 8 * second, along = k + 8 * third;
            if (TURNED)
                load_matrices<true>(a, left + (along + low) * ROWS + (row / 8 ^ low) * 8);
            else
                load_matrices<false>(a, left + (row + low) * DEPTH + (along / 8 ^ low) * 8);
#pragma unroll
            for (int j = 0; j < 4; ++j)
                mma_bfloat16(sums.v[i][j], a, b[j / 2] + j % 2 * 2);
        }
    }
}

// Where four_in_a_row belongs: rows row_of_lane() + 16 i and columns column_of_lane() + 8 j + 0..3 of the tile.
DEVICE int row_of_lane() { return threadIdx.x / 64 * 64 + threadIdx.x % 32 / 4 + threadIdx.x % 2 * 8; }

DEVICE int column_of_lane() { return threadIdx.x / 32 % 2 * 32 + threadIdx.x % 4 / 2 * 4; }

// The sum of the products of all slices. copy_slice(number) starts the copies of one of them. What it needs from
// other threads they may write to shared memory before all this, or in the call before.
template <bool TURNED, typename CopySlice>
DEVICE void multiply_slices(const scalar *slices, int count, CopySlice copy_slice, Fragments<4, 4> &sums) {
    for (int slice = 0; slice < STAGES - 1; ++slice) {
        SYNC();
        if (slice < count)
            copy_slice(slice);
        close_copies();
    }
    for (int slice = 0; slice < count; ++slice) {
        wait_copies<STAGES - 2>();
        SYNC();  // the slice is there, and all are done with the one before: it makes room for another
        if (slice + STAGES - 1 < count)
            copy_slice(slice + STAGES - 1);
        close_copies();
        const scalar *here = slices + slice % STAGES * SLICE;
        multiply<TURNED>(here, here + LEFT, sums);
    }
}

// The kernel of the same name in implicit_gemm.cu, with the same arguments and the same numbering of blocks.
// Groups have a multiple of RUN channels on both sides.
KERNEL(128, 2) void gather_product(
    const scalar *source, const scalar *weights, const real *bias, scalar *out,
    int images, int in_group, int out_group,
    int source_height, int out_height, int tap_rows, int row_step, int row_stride, int row_origin, int row_spread,
    int source_width, int out_width, int tap_columns, int column_step, int column_stride, int column_origin,
    int column_spread) {
    DYNAMIC_SHARED(scalar, slices);
    SHARED Pixel pixel_of_row[ROWS];
    Axis vertical = {source_height, out_height, tap_rows, row_step, row_stride, row_origin, row_spread};
    Axis horizontal = {source_width,  out_width,     tap_columns,  column_step,
                       column_stride, column_origin, column_spread};
    Gather gather = gather_of_block(vertical, horizontal, images, in_group, out_group);
    if (gather.first_pixel >= gather.pixels)
        return;  // the whole block
    int count = (length_of_sum(gather) + DEPTH - 1) / DEPTH;
    pixel_of_row[threadIdx.x] = source_pixel(gather, threadIdx.x);

    // Of each left slice a thread copies the same run in eight rows, of each right slice the same run in four
    // rows.
    constexpr int LEFT_APART = THREADS / 8, RIGHT_RUNS = COLUMNS / RUN, RIGHT_APART = THREADS / RIGHT_RUNS;
    int left_row = threadIdx.x / 8, left_run = threadIdx.x % 8;
    int right_row = threadIdx.x / RIGHT_RUNS, right_run = threadIdx.x % RIGHT_RUNS;
    Counter left = place_in_sum(gather, RUN * left_run), right = place_in_sum(gather, right_row);
    int left_place = left_row * DEPTH + (left_run ^ left_row % 8) * RUN;
    int right_place = LEFT + right_row * COLUMNS + moved(right_run, right_row) * RUN;
    int right_column = gather.first_channel + RUN * right_run;
    auto copy_slice = [&](int number) {
        scalar *slice = slices + number % STAGES * SLICE;
        auto copy_left = [&](int pass, int64 offset, bool inside) {
            copy_async<16>(slice + left_place + pass * LEFT_APART * DEPTH, source + offset, inside);
        };
        auto copy_right = [&](int pass, int64 offset, bool inside) {
            copy_async<16>(slice + right_place + pass * RIGHT_APART * COLUMNS, weights + offset + right_column,
                           inside && right_column < out_group);
        };
        fill_with_patches<8, LEFT_APART>(gather, pixel_of_row, left_row, left, copy_left);
        move_on(gather, left, DEPTH);
        fill_with_weights<4, RIGHT_APART>(gather, right, copy_right);
    };
    Fragments<4, 4> sums = {};
    multiply_slices<false>(slices, count, copy_slice, sums);

#pragma unroll
    for (int i = 0; i < 4; ++i) {
        int row = row_of_lane() + 16 * i;
        int64 offset = out_offset(gather, row);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            int channel = gather.first_channel + column_of_lane() + 8 * j;
            pack<4, float> values = four_in_a_row(sums.v[i][j]);
            if (gather.first_pixel + row >= gather.pixels || channel >= out_group)
                continue;
            if (bias) {
                pack<4, real> added = load<4>(bias + gather.group * out_group + channel);
#pragma unroll
                for (int n = 0; n < 4; ++n)
                    values.v[n] += added.v[n];
            }
            store<4>(out + offset + channel, values);
        }
    }
}

// The kernel of the same name in implicit_gemm.cu, with the same arguments and the same numbering of blocks.
KERNEL(128, 2) void weight_gradient(
    const scalar *x, const scalar *dy, real *partial, int images, int in_group, int out_group, int part_pixels,
    int height, int out_height, int tap_rows, int row_step, int row_origin, int row_spread,
    int width, int out_width, int tap_columns, int column_step, int column_origin, int column_spread) {
    DYNAMIC_SHARED(scalar, slices);
    SHARED PixelsOfSlice<DEPTH> pixels;
    Axis vertical = {height, out_height, tap_rows, row_step, 1, row_origin, row_spread};
    Axis horizontal = {width, out_width, tap_columns, column_step, 1, column_origin, column_spread};
    Correlation block = correlation_of_block(vertical, horizontal, images, in_group, out_group, part_pixels);
    int count = (block.last_pixel - block.first_pixel + DEPTH - 1) / DEPTH;

    // Of each left slice a thread copies the same run of rows (tap, c) of the tile for eight pixels; of each right
    // slice the same run of channels for four pixels.
    constexpr int LEFT_RUNS = ROWS / RUN, LEFT_APART = THREADS / LEFT_RUNS;
    constexpr int RIGHT_RUNS = COLUMNS / RUN, RIGHT_APART = THREADS / RIGHT_RUNS;
    int left_pixel = threadIdx.x / LEFT_RUNS, left_run = threadIdx.x % LEFT_RUNS;
    int right_pixel = threadIdx.x / RIGHT_RUNS, right_run = threadIdx.x % RIGHT_RUNS;
    Counter tap = counter_at(block.first_row + RUN * left_run, tap_columns, in_group);  // tap row, column, channel
    Counter noted = first_to_note(block);
    int left_place = left_pixel * ROWS + moved(left_run, left_pixel) * RUN;
    int right_place = LEFT + right_pixel * COLUMNS + moved(right_run, right_pixel) * RUN;
    int right_column = block.first_channel + RUN * right_run;
    auto copy_slice = [&](int number) {
        scalar *slice = slices + number % STAGES * SLICE;
        auto copy_left = [&](int pass, int64 offset, bool inside) {
            copy_async<16>(slice + left_place + pass * LEFT_APART * ROWS, x + offset, inside);
        };
        auto copy_right = [&](int pass, int64 offset, bool inside) {
            copy_async<16>(slice + right_place + pass * RIGHT_APART * COLUMNS, dy + offset + right_column,
                           inside && right_column < out_group);
        };
        note_pixels(block, number + 1, noted, pixels);
        fill_with_turned_patches<8, LEFT_APART>(block, pixels, number, tap, left_pixel, copy_left);
        fill_with_upstream<4, RIGHT_APART>(block, block.first_pixel + number * DEPTH + right_pixel, copy_right);
    };
    Fragments<4, 4> sums = {};
    note_pixels(block, 0, noted, pixels);
    multiply_slices<true>(slices, count, copy_slice, sums);

#pragma unroll
    for (int i = 0; i < 4; ++i) {
        int row = row_of_lane() + 16 * i;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            int channel = block.first_channel + column_of_lane() + 8 * j;
            pack<4, float> values = four_in_a_row(sums.v[i][j]);
            if (block.first_row + row < block.rows && channel < out_group)
                store<4>(partial + partial_offset(block, row) + channel, values);
        }
    }
}
