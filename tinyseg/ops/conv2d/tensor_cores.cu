// Convolution as an implicit matrix product on tensor cores: see tensor_cores.py; implicit_gemm.cu is the same
// without them, and easier to begin with.
//
// 128 threads, four warps, calculate a tile of 128 rows by 64 columns in slices of 32 along the sum. Each warp
// makes a quarter of 64 x 32 as 4 x 4 fragments of 16 x 8: an instruction multiplies 16 x 8 numbers of the left
// matrix by 8 x 8 of the right one, and adds to a fragment. Three slices are in shared memory at the same time:
// while one is multiplied, the next two are on their way, without passing through registers.

constexpr int ROWS = 128, COLUMNS = 64, DEPTH = 32, STAGES = 3, THREADS = 128;
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

struct Pixel {
    int64 offset;  // of its first channel in the source, when tap offsets are 0
    int h, v;
};

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
    int channel_tiles = (out_group + COLUMNS - 1) / COLUMNS;
    int phases = phases_of(vertical) * phases_of(horizontal);
    int phase = blockIdx.x / channel_tiles % phases;
    int row_phase = phase / phases_of(horizontal), column_phase = phase % phases_of(horizontal);
    int grid_height = count_of_phase(vertical, row_phase), grid_width = count_of_phase(horizontal, column_phase);
    int pixels = images * grid_height * grid_width;
    int first_pixel = blockIdx.x / channel_tiles / phases * ROWS;
    int first_channel = blockIdx.x % channel_tiles * COLUMNS, group = blockIdx.y;
    int in_channels = in_group * gridDim.y, out_channels = out_group * gridDim.y;
    if (first_pixel >= pixels)
        return;  // the whole block: other phases have more pixels
    Taps down = taps_of_phase(vertical, row_phase), across = taps_of_phase(horizontal, column_phase);
    Counter from = counter_at(first_pixel, grid_height, grid_width);
    Counter to = counter_at(min(first_pixel + ROWS, pixels) - 1, grid_height, grid_width);
    bool one_image = from.high == to.high;
    leave_out_padding(down, one_image ? from.middle * row_step : 0,
                      (one_image ? to.middle : grid_height - 1) * row_step, source_height);
    leave_out_padding(across, 0, (grid_width - 1) * column_step, source_width);
    int length = down.count * across.count * in_group, count = (length + DEPTH - 1) / DEPTH;
    int side_taps = max(across.count, 1);

    int pixel = first_pixel + threadIdx.x;
    Counter at = counter_at(pixel, grid_height, grid_width);
    int row = at.middle * row_step, column = at.low * column_step;
    int64 offset = (int64(at.high) * source_height + row) * source_width + column;
    if (pixel >= pixels)
        row = -(1 << 30);  // outside of every image
    pixel_of_row[threadIdx.x] = {offset * in_channels + group * in_group, row, column};
    SYNC();

    // Of each left slice a thread copies the same run of four in eight rows, 16 apart; of each right slice the
    // same run in four rows, 8 apart.
    int left_row = threadIdx.x / 8, left_run = threadIdx.x % 8;
    int right_row = threadIdx.x / 16, right_run = threadIdx.x % 16;
    Counter left = counter_at(4 * left_run, side_taps, in_group);  // tap row, tap column, channel
    Counter right = counter_at(right_row, side_taps, in_group);
    int left_place = left_row * DEPTH + (left_run ^ left_row % 8) * 4;
    int right_place = LEFT + right_row * COLUMNS + (right_run ^ right_row % 4 * 2) * 4;
    bool has_columns = first_channel + 4 * right_run < out_group;
    int right_column = group * out_group + first_channel + 4 * right_run;
    auto copy_slice = [&](int stage) {
        float *slice = slices + stage * SLICE;
        int row_offset = offset_of(down, left.high), column_offset = offset_of(across, left.middle);
        int64 tap_offset = (int64(row_offset) * source_width + column_offset) * in_channels + left.low;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            Pixel pixel = pixel_of_row[left_row + 16 * i];
            int h = pixel.h + row_offset, v = pixel.v + column_offset;
            bool inside = left.high < down.count && h >= 0 && h < source_height && v >= 0 && v < source_width;
            copy_async<16>(slice + left_place + 16 * i * DEPTH, source + pixel.offset + tap_offset, inside);
        }
        advance(left, DEPTH, side_taps, in_group);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            int tap = tap_of(down, right.high) * tap_columns + tap_of(across, right.middle);
            const float *row = weights + (int64(tap) * in_group + right.low) * out_channels;
            copy_async<16>(slice + right_place + 8 * i * COLUMNS, row + right_column,
                           has_columns && right.high < down.count);
            advance(right, 8, side_taps, in_group);
        }
    };

    for (int slice = 0; slice < STAGES - 1; ++slice) {
        if (slice < count)
            copy_slice(slice);
        close_copies();
    }
    Fragments<4, 4> sums = {};
    for (int slice = 0; slice < count; ++slice) {
        wait_copies<STAGES - 2>();
        SYNC();  // the slice is there, and all are done with the one before: it makes room for another
        if (slice + STAGES - 1 < count)
            copy_slice((slice + STAGES - 1) % STAGES);
        close_copies();
        const float *here = slices + slice % STAGES * SLICE;
        multiply<false>(here, here + LEFT, sums);
    }

#pragma unroll
    for (int i = 0; i < 4; ++i) {
        int pixel = first_pixel + row_of_lane() + 16 * i;
        Counter at = counter_at(pixel, grid_height, grid_width);
        int h = row_phase + at.middle * row_stride, v = column_phase + at.low * column_stride;
        int64 offset = ((int64(at.high) * out_height + h) * out_width + v) * out_channels + group * out_group;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            int channel = first_channel + column_of_lane() + 8 * j;
            pack<4> values = four_in_a_row(sums.v[i][j]);
            if (pixel >= pixels || channel >= out_group)
                continue;
            if (bias) {
                pack<4> added = load<4>(bias + group * out_group + channel);
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
    int length = tap_rows * tap_columns * in_group, row_tiles = (length + ROWS - 1) / ROWS;
    int first_row = blockIdx.x % row_tiles * ROWS, part = blockIdx.x / row_tiles;
    int first_channel = blockIdx.y * COLUMNS, group = blockIdx.z;
    int in_channels = in_group * gridDim.z, out_channels = out_group * gridDim.z;
    int first_pixel = part * part_pixels;
    int last_pixel = min(first_pixel + part_pixels, images * out_height * out_width);
    int count = (last_pixel - first_pixel + DEPTH - 1) / DEPTH;

    // Of each left slice a thread copies the same run of four rows (tap, c) of the tile for eight pixels, 4 apart;
    // of each right slice the same run of four channels for four pixels, 8 apart.
    int left_pixel = threadIdx.x / 32, left_run = threadIdx.x % 32;
    int right_pixel = threadIdx.x / 16, right_run = threadIdx.x % 16;
    Counter tap = counter_at(first_row + 4 * left_run, tap_columns, in_group);  // tap row, tap column, channel
    int row_offset = row_origin + tap.high * row_spread;
    int column_offset = column_origin + tap.middle * column_spread;
    int left_place = left_pixel * ROWS + (left_run ^ left_pixel * 2) * 4;
    int right_place = LEFT + right_pixel * COLUMNS + (right_run ^ right_pixel % 4 * 2) * 4;
    bool has_columns = first_channel + 4 * right_run < out_group;
    const float *x_channel = x + group * in_group + tap.low;
    const float *dy_channel = dy + group * out_group + first_channel + 4 * right_run;
    Counter left = counter_at(first_pixel + left_pixel, out_height, out_width);
    auto copy_slice = [&](int number) {
        float *slice = slices + number % STAGES * SLICE;
        int first = first_pixel + number * DEPTH;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            int h = left.middle * row_step + row_offset, v = left.low * column_step + column_offset;
            int64 offset = (int64(left.high) * height + h) * width + v;
            bool inside = h >= 0 && h < height && v >= 0 && v < width && tap.high < tap_rows;
            copy_async<16>(slice + left_place + 4 * i * ROWS, x_channel + offset * in_channels,
                           inside && first + left_pixel + 4 * i < last_pixel);
            advance(left, 4, out_height, out_width);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            int pixel = first + right_pixel + 8 * i;
            copy_async<16>(slice + right_place + 8 * i * COLUMNS, dy_channel + int64(pixel) * out_channels,
                           has_columns && pixel < last_pixel);
        }
    };

    for (int slice = 0; slice < STAGES - 1; ++slice) {
        if (slice < count)
            copy_slice(slice);
        close_copies();
    }
    Fragments<4, 4> sums = {};
    for (int slice = 0; slice < count; ++slice) {
        wait_copies<STAGES - 2>();
        SYNC();
        if (slice + STAGES - 1 < count)
            copy_slice(slice + STAGES - 1);
        close_copies();
        const float *here = slices + slice % STAGES * SLICE;
        multiply<true>(here, here + LEFT, sums);
    }

#pragma unroll
    for (int i = 0; i < 4; ++i) {
        int row = first_row + row_of_lane() + 16 * i;
        int64 offset = (int64(part) * length + row) * out_channels + group * out_group;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            int channel = first_channel + column_of_lane() + 8 * j;
            pack<4> values = four_in_a_row(sums.v[i][j]);
            if (row < length && channel < out_group)
                store<4>(partial + offset + channel, values);
        }
    }
}
