// Convolution as an implicit matrix product on tensor cores: see tensor_cores.py; implicit_gemm.cu is the same
// without them, and easier to begin with.
//
// 128 threads, four warps, calculate a tile of 128 rows by 64 columns in slices of 32 along the sum. Each warp
// makes a quarter of 64 x 32 as 4 x 4 fragments of 16 x 8: an instruction multiplies 16 x 8 numbers of the left
// matrix by 8 x 8 of the right one, and adds to a fragment. Three slices are in shared memory at the same time:
// while one is multiplied, the next two are on their way, without passing through registers.

constexpr int DEPTH = 32, STAGES = 3;
constexpr int LEFT = ROWS * DEPTH, SLICE = LEFT + DEPTH * COLUMNS;  // floats

// Memory comes in 32 banks of 4 bytes, and 32 lanes are served at once if their banks differ. So runs of four
// floats change places within a row. Where a row has the number k along the sum, and holds neighbouring rows or
// columns of the tile, run q moves to q ^ 2 (k % 4); where it has the number m, and is a piece of the sum, to q ^
// (m % 8).

// TURNED says whether the left slice has a row for each number k along the sum, or for each row of the tile.
template <bool TURNED> DEVICE void multiply(const float *left, const float *right, Fragments<4, 4> &sums) {
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, warp = threadIdx.x / 32;
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
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                int below = n % 2, later = n / 2;  // by 8 rows; by 4 along the sum
                int turned = (k + 4 * later + t) * ROWS + ((2 * i + below) ^ t) * 8 + g;
                int straight = (16 * i + 8 * below + g) * DEPTH + ((k / 4 + later) ^ g) * 4 + t;
                split(left[TURNED ? turned : straight], a.large[n], a.small[n]);
            }
            multiply_pieces(to.v[i], a, b);
        }
    }
    if (TERMS == 3)
        add(sums, of_slice);
}

// Where four_in_a_row belongs: rows row_of_lane() + 16 i and columns column_of_lane() + 8 j + 0..3 of the tile.
DEVICE int row_of_lane() { return threadIdx.x / 64 * 64 + threadIdx.x % 32 / 4 + threadIdx.x % 2 * 8; }

DEVICE int column_of_lane() { return threadIdx.x / 32 % 2 * 32 + threadIdx.x % 4 / 2 * 4; }

// The sum of the products of all slices. copy_slice(number) starts the copies of one of them.
template <bool TURNED, typename CopySlice>
DEVICE void multiply_slices(const float *slices, int count, CopySlice copy_slice, Fragments<4, 4> &sums) {
    for (int slice = 0; slice < STAGES - 1; ++slice) {
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
        const float *here = slices + slice % STAGES * SLICE;
        multiply<TURNED>(here, here + LEFT, sums);
    }
}

// The kernel of the same name in implicit_gemm.cu, with the same arguments and the same numbering of blocks.
// Groups have a multiple of 4 channels on both sides.
KERNEL(128, 2) void gather_product(
    const float *source, const float *weights, const float *bias, float *out,
    int images, int in_group, int out_group,
    int source_height, int out_height, int tap_rows, int row_step, int row_stride, int row_origin, int row_spread,
    int source_width, int out_width, int tap_columns, int column_step, int column_stride, int column_origin,
    int column_spread) {
    DYNAMIC_SHARED(float, slices);
    SHARED Pixel pixel_of_row[ROWS];
    Axis vertical = {source_height, out_height, tap_rows, row_step, row_stride, row_origin, row_spread};
    Axis horizontal = {source_width,  out_width,     tap_columns,  column_step,
                       column_stride, column_origin, column_spread};
    Gather gather = gather_of_block(vertical, horizontal, images, in_group, out_group);
    if (gather.first_pixel >= gather.pixels)
        return;  // the whole block
    int count = (length_of_sum(gather) + DEPTH - 1) / DEPTH;
    pixel_of_row[threadIdx.x] = source_pixel(gather, threadIdx.x);
    SYNC();

    // Of each left slice a thread copies the same run of four in eight rows, 16 apart; of each right slice the
    // same run in four rows, 8 apart.
    int left_row = threadIdx.x / 8, left_run = threadIdx.x % 8;
    int right_row = threadIdx.x / 16, right_run = threadIdx.x % 16;
    Counter left = place_in_sum(gather, 4 * left_run), right = place_in_sum(gather, right_row);
    int left_place = left_row * DEPTH + (left_run ^ left_row % 8) * 4;
    int right_place = LEFT + right_row * COLUMNS + (right_run ^ right_row % 4 * 2) * 4;
    int right_column = gather.first_channel + 4 * right_run;
    auto copy_slice = [&](int number) {
        float *slice = slices + number % STAGES * SLICE;
        auto copy_left = [&](int pass, int64 offset, bool inside) {
            copy_async<16>(slice + left_place + pass * 16 * DEPTH, source + offset, inside);
        };
        auto copy_right = [&](int pass, int64 offset, bool inside) {
            copy_async<16>(slice + right_place + pass * 8 * COLUMNS, weights + offset + right_column,
                           inside && right_column < out_group);
        };
        fill_with_patches<8, 16>(gather, pixel_of_row, left_row, left, copy_left);
        move_on(gather, left, DEPTH);
        fill_with_weights<4, 8>(gather, right, copy_right);
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
            pack<4> values = four_in_a_row(sums.v[i][j]);
            if (gather.first_pixel + row >= gather.pixels || channel >= out_group)
                continue;
            if (bias) {
                pack<4> added = load<4>(bias + gather.group * out_group + channel);
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
    const float *x, const float *dy, float *partial, int images, int in_group, int out_group, int part_pixels,
    int height, int out_height, int tap_rows, int row_step, int row_origin, int row_spread,
    int width, int out_width, int tap_columns, int column_step, int column_origin, int column_spread) {
    DYNAMIC_SHARED(float, slices);
    Axis vertical = {height, out_height, tap_rows, row_step, 1, row_origin, row_spread};
    Axis horizontal = {width, out_width, tap_columns, column_step, 1, column_origin, column_spread};
    Correlation block = correlation_of_block(vertical, horizontal, images, in_group, out_group, part_pixels);
    int count = (block.last_pixel - block.first_pixel + DEPTH - 1) / DEPTH;

    // Of each left slice a thread copies the same run of four rows (tap, c) of the tile for eight pixels, 4 apart;
    // of each right slice the same run of four channels for four pixels, 8 apart.
    int left_pixel = threadIdx.x / 32, left_run = threadIdx.x % 32;
    int right_pixel = threadIdx.x / 16, right_run = threadIdx.x % 16;
    Counter tap = counter_at(block.first_row + 4 * left_run, tap_columns, in_group);  // tap row, column, channel
    Counter left = pixel_at(block, block.first_pixel + left_pixel);
    int left_place = left_pixel * ROWS + (left_run ^ left_pixel * 2) * 4;
    int right_place = LEFT + right_pixel * COLUMNS + (right_run ^ right_pixel % 4 * 2) * 4;
    int right_column = block.first_channel + 4 * right_run;
    auto copy_slice = [&](int number) {
        float *slice = slices + number % STAGES * SLICE;
        int first = block.first_pixel + number * DEPTH;
        auto copy_left = [&](int pass, int64 offset, bool inside) {
            copy_async<16>(slice + left_place + pass * 4 * ROWS, x + offset, inside);
        };
        auto copy_right = [&](int pass, int64 offset, bool inside) {
            copy_async<16>(slice + right_place + pass * 8 * COLUMNS, dy + offset + right_column,
                           inside && right_column < out_group);
        };
        fill_with_turned_patches<8, 4>(block, tap, first + left_pixel, left, copy_left);
        fill_with_upstream<4, 8>(block, first + right_pixel, copy_right);
    };
    Fragments<4, 4> sums = {};
    multiply_slices<true>(slices, count, copy_slice, sums);

#pragma unroll
    for (int i = 0; i < 4; ++i) {
        int row = row_of_lane() + 16 * i;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            int channel = block.first_channel + column_of_lane() + 8 * j;
            pack<4> values = four_in_a_row(sums.v[i][j]);
            if (block.first_row + row < block.rows && channel < out_group)
                store<4>(partial + partial_offset(block, row) + channel, values);
        }
    }
}
