// Convolution as a matrix product whose left matrix, the patches, is never stored: see implicit_gemm.py.
//
// 256 threads calculate a tile of the product, 128 rows by 64 columns. They take the two matrices in slices of 16
// along the sum: all threads copy a slice of each to shared memory, then every thread multiplies. Thread t holds
// the 8 x 4 numbers of rows 8 * (t / 16) + 0..7 and columns 4 * (t % 16) + 0..3 in registers. For each of the 16
// steps of a slice it reads 8 + 4 numbers and does 32 multiplications with them.
//
// WIDTH: how many neighbouring numbers of the left matrix a thread copies at once, 1 or 4.

constexpr int ROWS = 128, COLUMNS = 64, DEPTH = 16, THREADS = 256;
constexpr int PITCH = ROWS + 4;  // between rows of the left slice: fewer threads write to the same bank of memory

struct Slices {
    scalar left[DEPTH][PITCH];     // the left matrix, transposed
    scalar right[DEPTH][COLUMNS];
};

struct Sums {
    scalar v[8][4];
};

DEVICE void multiply(const Slices &slices, Sums &sums) {
    int row = threadIdx.x / 16 * 8, column = threadIdx.x % 16 * 4;
#pragma unroll 4
    for (int k = 0; k < DEPTH; ++k) {
        pack<4> above = load<4>(&slices.left[k][row]), below = load<4>(&slices.left[k][row + 4]);
        pack<4> right = load<4>(&slices.right[k][column]);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                sums.v[i][j] += above.v[i] * right.v[j];
                sums.v[i + 4][j] += below.v[i] * right.v[j];
            }
    }
}

// Four neighbouring numbers of a row that is `length` long, from number `first` on; 0 beyond its end.
DEVICE pack<4> load_part(const scalar *row, int first, int length) {
    if (length % 4 == 0 && first < length)
        return load<4>(row + first);
    pack<4> values;
#pragma unroll
    for (int j = 0; j < 4; ++j)
        values.v[j] = first + j < length ? row[first + j] : scalar(0);
    return values;
}

DEVICE void store_part(scalar *row, int first, int length, const scalar *values) {
    if (length % 4 == 0 && first < length) {
        store<4>(row + first, {{values[0], values[1], values[2], values[3]}});
        return;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j)
        if (first + j < length)
            row[first + j] = values[j];
}

struct Pixel {
    int64 offset;  // of its first channel in the source, when tap offsets are 0
    int h, v;
};

// out[n, phase + i * stride, g, o] = bias[g, o] + sum over taps and c of
//     source[n, i * step + offset(tap), g, c] * weights[tap, c, g, o].
// A row of the product is a pixel (n, i, j) of a phase, a column a channel o; the sum runs over (tap row, tap
// column, c), c fastest. Blocks along x: channel tiles of all phases of all pixel tiles; along y: groups.
KERNEL(256, 2) void gather_product(
    const scalar *source, const scalar *weights, const scalar *bias, scalar *out, int images, int in_group,
    int out_group, int source_height, int out_height, int tap_rows, int row_step, int row_stride, int row_origin,
    int row_spread, int source_width, int out_width, int tap_columns, int column_step, int column_stride,
    int column_origin, int column_spread) {
    SHARED Slices slices;
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
    int length = down.count * across.count * in_group;
    int side_taps = max(across.count, 1);

    if (threadIdx.x < ROWS) {
        int pixel = first_pixel + threadIdx.x;
        Counter at = counter_at(pixel, grid_height, grid_width);
        int h = at.middle * row_step, v = at.low * column_step;
        int64 offset = (int64(at.high) * source_height + h) * source_width + v;
        if (pixel >= pixels)
            h = -(1 << 30);  // outside of every image
        pixel_of_row[threadIdx.x] = {offset * in_channels + group * in_group, h, v};
    }
    SYNC();

    // Of each left slice a thread copies WIDTH columns, the same in each of its rows.
    constexpr int SIDE_BY_SIDE = DEPTH / WIDTH, AT_ONCE = THREADS / SIDE_BY_SIDE, PASSES = ROWS / AT_ONCE;
    int left_row = threadIdx.x / SIDE_BY_SIDE, left_column = threadIdx.x % SIDE_BY_SIDE * WIDTH;
    Counter left = counter_at(left_column, side_taps, in_group);  // tap row, tap column, channel
    // Of each right slice it copies four columns of one row.
    int right_row = threadIdx.x / 16, right_column = threadIdx.x % 16 * 4;
    Counter right = counter_at(right_row, side_taps, in_group);

    Sums sums = {};
    for (int start = 0; start < length; start += DEPTH) {
        int row_offset = offset_of(down, left.high), column_offset = offset_of(across, left.middle);
        int64 tap_offset = (int64(row_offset) * source_width + column_offset) * in_channels + left.low;
#pragma unroll
        for (int i = 0; i < PASSES; ++i) {
            Pixel pixel = pixel_of_row[left_row + i * AT_ONCE];
            int h = pixel.h + row_offset, v = pixel.v + column_offset;
            pack<WIDTH> values = {};
            if (left.high < down.count && h >= 0 && h < source_height && v >= 0 && v < source_width)
                values = load<WIDTH>(source + pixel.offset + tap_offset);
#pragma unroll
            for (int k = 0; k < WIDTH; ++k)
                slices.left[left_column + k][left_row + i * AT_ONCE] = values.v[k];
        }
        pack<4> values = {};
        if (right.high < down.count) {
            int tap = tap_of(down, right.high) * tap_columns + tap_of(across, right.middle);
            int64 row = (int64(tap) * in_group + right.low) * out_channels + group * out_group;
            values = load_part(weights + row, first_channel + right_column, out_group);
        }
        store<4>(&slices.right[right_row][right_column], values);
        advance(left, DEPTH, side_taps, in_group);
        advance(right, DEPTH, side_taps, in_group);
        SYNC();
        multiply(slices, sums);
        SYNC();
    }

    int channel = first_channel + threadIdx.x % 16 * 4;
    if (bias) {
        pack<4> added = load_part(bias + group * out_group, channel, out_group);
        for (int i = 0; i < 8; ++i)
            for (int j = 0; j < 4; ++j)
                sums.v[i][j] += added.v[j];
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        int pixel = first_pixel + threadIdx.x / 16 * 8 + i;
        Counter at = counter_at(pixel, grid_height, grid_width);
        int h = row_phase + at.middle * row_stride, v = column_phase + at.low * column_stride;
        int64 offset = ((int64(at.high) * out_height + h) * out_width + v) * out_channels + group * out_group;
        if (pixel < pixels)
            store_part(out + offset, channel, out_group, sums.v[i]);
    }
}

// partial[part, tap, c, g, o] = sum over the part's pixels (n, p, q) of x[n, h, v, g, c] * dy[n, p, q, g, o]. A
// row of the product is a (tap row, tap column, c), a column a channel o; the sum runs over `part_pixels` pixels.
// Blocks along x: row tiles of all parts; along y: channel tiles; along z: groups.
KERNEL(256, 1) void weight_gradient(
    const scalar *x, const scalar *dy, scalar *partial, int images, int in_group, int out_group, int part_pixels,
    int height, int out_height, int tap_rows, int row_step, int row_origin, int row_spread,
    int width, int out_width, int tap_columns, int column_step, int column_origin, int column_spread) {
    SHARED Slices slices;
    int length = tap_rows * tap_columns * in_group, row_tiles = (length + ROWS - 1) / ROWS;
    int first_row = blockIdx.x % row_tiles * ROWS, part = blockIdx.x / row_tiles;
    int first_channel = blockIdx.y * COLUMNS, group = blockIdx.z;
    int in_channels = in_group * gridDim.z, out_channels = out_group * gridDim.z;
    int first_pixel = part * part_pixels;
    int last_pixel = min(first_pixel + part_pixels, images * out_height * out_width);

    // A thread copies the same WIDTH rows (tap, c) for each of its pixels.
    constexpr int SIDE_BY_SIDE = ROWS / WIDTH, AT_ONCE = THREADS / SIDE_BY_SIDE, PASSES = DEPTH / AT_ONCE;
    int left_row = threadIdx.x % SIDE_BY_SIDE * WIDTH, left_pixel = threadIdx.x / SIDE_BY_SIDE;
    Counter tap = counter_at(first_row + left_row, tap_columns, in_group);  // tap row, tap column, channel
    int row_offset = row_origin + tap.high * row_spread;
    int column_offset = column_origin + tap.middle * column_spread;
    Counter left = counter_at(first_pixel + left_pixel, out_height, out_width);
    int right_pixel = threadIdx.x / 16, right_column = threadIdx.x % 16 * 4;

    Sums sums = {};
    for (int start = first_pixel; start < last_pixel; start += DEPTH) {
#pragma unroll
        for (int i = 0; i < PASSES; ++i) {
            int pixel = left_pixel + i * AT_ONCE;
            int h = left.middle * row_step + row_offset, v = left.low * column_step + column_offset;
            pack<WIDTH> values = {};
            if (tap.high < tap_rows && start + pixel < last_pixel && h >= 0 && h < height && v >= 0 && v < width) {
                int64 offset = (int64(left.high) * height + h) * width + v;
                values = load<WIDTH>(x + offset * in_channels + group * in_group + tap.low);
            }
            store<WIDTH>(&slices.left[pixel][left_row], values);
            advance(left, AT_ONCE, out_height, out_width);
        }
        pack<4> values = {};
        if (start + right_pixel < last_pixel) {
            const scalar *row = dy + int64(start + right_pixel) * out_channels + group * out_group;
            values = load_part(row, first_channel + right_column, out_group);
        }
        store<4>(&slices.right[right_pixel][right_column], values);
        SYNC();
        multiply(slices, sums);
        SYNC();
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        int row = first_row + threadIdx.x / 16 * 8 + i;
        int64 offset = (int64(part) * length + row) * out_channels + group * out_group;
        if (row < length)
            store_part(partial + offset, first_channel + threadIdx.x % 16 * 4, out_group, sums.v[i]);
    }
}

// turned[tap, o, g, c] = weights[tap, c, g, o]: what the gradient of the data multiplies by.
KERNEL(256, 4) void turn(const scalar *weights, scalar *turned, int groups, int in_group, int out_group,
                         int64 count) {
    int64 i = thread_number();
    if (i >= count)
        return;
    int c = i % in_group, g = i / in_group % groups;
    int64 row = i / in_group / groups;  // (tap, o)
    int o = row % out_group;
    int64 tap = row / out_group;
    turned[i] = weights[((tap * in_group + c) * groups + g) * out_group + o];
}
