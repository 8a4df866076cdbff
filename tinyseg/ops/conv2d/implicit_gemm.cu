// Convolution as a matrix product whose left matrix, the patches, is never stored: see implicit_gemm.py.
//
// 256 threads calculate a tile of the product, 128 rows by 64 columns. They take the two matrices in slices of 16
// along the sum: all threads copy a slice of each to shared memory, then every thread multiplies. Thread t holds
// the 8 x 4 numbers of rows 8 * (t / 16) + 0..7 and columns 4 * (t % 16) + 0..3 in registers. For each of the 16
// steps of a slice it reads 8 + 4 numbers and does 32 multiplications with them.
//
// WIDTH: how many neighbouring numbers of the left matrix a thread copies at once, 1 or 4.

constexpr int DEPTH = 16, THREADS = 256;
constexpr int PITCH = ROWS + 4;  // between rows of the left slice: fewer threads write to the same bank of memory

struct Slices {
    real left[DEPTH][PITCH];     // the left matrix, transposed
    real right[DEPTH][COLUMNS];
};

struct Sums {
    real v[8][4];
};

DEVICE void multiply(const Slices &slices, Sums &sums) {
    int row = threadIdx.x / 16 * 8, column = threadIdx.x % 16 * 4;
#pragma unroll 4
    for (int k = 0; k < DEPTH; ++k) {
        pack<4, real> above = load<4>(&slices.left[k][row]), below = load<4>(&slices.left[k][row + 4]);
        pack<4, real> right = load<4>(&slices.right[k][column]);
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
template <typename T> DEVICE pack<4, T> load_part(const T *row, int first, int length) {
    if (length % 4 == 0 && first < length)
        return load<4>(row + first);
    pack<4, T> values;
#pragma unroll
    for (int j = 0; j < 4; ++j)
        values.v[j] = first + j < length ? row[first + j] : T(0);
    return values;
}

template <typename T> DEVICE void store_part(T *row, int first, int length, const real *values) {
    if (length % 4 == 0 && first < length) {
        store<4>(row + first, pack<4, real>{{values[0], values[1], values[2], values[3]}});
        return;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j)
        if (first + j < length)
            row[first + j] = values[j];
}

// out[n, phase + i * stride, g, o] = bias[g, o] + sum over taps and c of
//     source[n, i * step + offset(tap), g, c] * weights[tap, c, g, o]        see gather_product in tiles.cuh.
KERNEL(256, 2) void gather_product(
    const scalar *source, const real *weights, const real *bias, scalar *out, int images, int in_group,
    int out_group, int source_height, int out_height, int tap_rows, int row_step, int row_stride, int row_origin,
    int row_spread, int source_width, int out_width, int tap_columns, int column_step, int column_stride,
    int column_origin, int column_spread) {
    SHARED Slices slices;
    SHARED Pixel pixel_of_row[ROWS];
    Axis vertical = {source_height, out_height, tap_rows, row_step, row_stride, row_origin, row_spread};
    Axis horizontal = {source_width,  out_width,     tap_columns,  column_step,
                       column_stride, column_origin, column_spread};
    Gather gather = gather_of_block(vertical, horizontal, images, in_group, out_group);
    if (gather.first_pixel >= gather.pixels)
        return;  // the whole block
    if (threadIdx.x < ROWS)
        pixel_of_row[threadIdx.x] = source_pixel(gather, threadIdx.x);
    SYNC();

    // Of each left slice a thread copies WIDTH columns, the same in each of its rows; of each right slice four
    // columns of one row.
    constexpr int SIDE_BY_SIDE = DEPTH / WIDTH, AT_ONCE = THREADS / SIDE_BY_SIDE;
    int left_row = threadIdx.x / SIDE_BY_SIDE, left_column = threadIdx.x % SIDE_BY_SIDE * WIDTH;
    int right_row = threadIdx.x / 16, right_column = threadIdx.x % 16 * 4;
    Counter left = place_in_sum(gather, left_column), right = place_in_sum(gather, right_row);
    Sums sums = {};
    for (int start = 0; start < length_of_sum(gather); start += DEPTH) {
        auto copy_left = [&](int pass, int64 offset, bool inside) {
            pack<WIDTH> values = {};
            if (inside)
                values = load<WIDTH>(source + offset);
#pragma unroll
            for (int k = 0; k < WIDTH; ++k)
                slices.left[left_column + k][left_row + pass * AT_ONCE] = values.v[k];
        };
        auto copy_right = [&](int, int64 offset, bool inside) {
            pack<4, real> values = {};
            if (inside)
                values = load_part(weights + offset, gather.first_channel + right_column, out_group);
            store<4>(&slices.right[right_row][right_column], values);
        };
        fill_with_patches<ROWS / AT_ONCE, AT_ONCE>(gather, pixel_of_row, left_row, left, copy_left);
        move_on(gather, left, DEPTH);
        fill_with_weights<1, DEPTH>(gather, right, copy_right);
        SYNC();
        multiply(slices, sums);
        SYNC();
    }

    int channel = gather.first_channel + threadIdx.x % 16 * 4;
    if (bias) {
        pack<4, real> added = load_part(bias + gather.group * out_group, channel, out_group);
        for (int i = 0; i < 8; ++i)
            for (int j = 0; j < 4; ++j)
                sums.v[i][j] += added.v[j];
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        int row = threadIdx.x / 16 * 8 + i;
        if (gather.first_pixel + row < gather.pixels)
            store_part(out + out_offset(gather, row), channel, out_group, sums.v[i]);
    }
}

// partial[part, tap, c, g, o] = sum over the part's pixels (n, p, q) of x[n, h, v, g, c] * dy[n, p, q, g, o]; see
// weight_gradient in tiles.cuh.
KERNEL(256, 1) void weight_gradient(
    const scalar *x, const scalar *dy, real *partial, int images, int in_group, int out_group, int part_pixels,
    int height, int out_height, int tap_rows, int row_step, int row_origin, int row_spread,
    int width, int out_width, int tap_columns, int column_step, int column_origin, int column_spread) {
    SHARED Slices slices;
    SHARED PixelsOfSlice<DEPTH> pixels;
    Axis vertical = {height, out_height, tap_rows, row_step, 1, row_origin, row_spread};
    Axis horizontal = {width, out_width, tap_columns, column_step, 1, column_origin, column_spread};
    Correlation block = correlation_of_block(vertical, horizontal, images, in_group, out_group, part_pixels);

    // Of each left slice a thread copies the same WIDTH rows (tap, c) for each of its pixels; of each right slice
    // four channels of one pixel.
    constexpr int SIDE_BY_SIDE = ROWS / WIDTH, AT_ONCE = THREADS / SIDE_BY_SIDE;
    int left_row = threadIdx.x % SIDE_BY_SIDE * WIDTH, left_pixel = threadIdx.x / SIDE_BY_SIDE;
    int right_pixel = threadIdx.x / 16, right_column = threadIdx.x % 16 * 4;
    Counter tap = counter_at(block.first_row + left_row, tap_columns, in_group);  // tap row, tap column, channel
    Counter noted = first_to_note(block);
    // A warp has 16 rows of the tile. Of an image of three channels, 3 x 3 taps make 27 of its 128.
    bool warp_has_rows = block.first_row + threadIdx.x / 32 * 16 < block.rows;
    Sums sums = {};
    note_pixels(block, 0, noted, pixels);
    SYNC();
    for (int slice = 0; block.first_pixel + slice * DEPTH < block.last_pixel; ++slice) {
        auto copy_left = [&](int pass, int64 offset, bool inside) {
            pack<WIDTH> values = {};
            if (inside)
                values = load<WIDTH>(x + offset);
            store<WIDTH>(&slices.left[left_pixel + pass * AT_ONCE][left_row], values);
        };
        auto copy_right = [&](int, int64 offset, bool inside) {
            pack<4> values = {};
            if (inside)
                values = load_part(dy + offset, block.first_channel + right_column, out_group);
            store<4>(&slices.right[right_pixel][right_column], values);
        };
        note_pixels(block, slice + 1, noted, pixels);
        fill_with_turned_patches<DEPTH / AT_ONCE, AT_ONCE>(block, pixels, slice, tap, left_pixel, copy_left);
        fill_with_upstream<1, DEPTH>(block, block.first_pixel + slice * DEPTH + right_pixel, copy_right);
        SYNC();
        if (warp_has_rows)
            multiply(slices, sums);
        SYNC();
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        int row = threadIdx.x / 16 * 8 + i;
        if (block.first_row + row < block.rows)
            store_part(partial + partial_offset(block, row), block.first_channel + threadIdx.x % 16 * 4, out_group,
                       sums.v[i]);
    }
}

// turned[tap, o, g, c] = weights[tap, c, g, o]: what the gradient of the data multiplies by. A block turns 32 x 32
// numbers of one tap and group in shared memory, so that neighbouring threads read and write neighbouring numbers.
KERNEL(256, 4) void turn(const real *weights, scalar *turned, int groups, int in_group, int out_group) {
    constexpr int SIDE = 32;
    SHARED real square[SIDE][SIDE + 1];  // the columns of a row, and the rows of a column, lie in different banks
    int in_tiles = (in_group + SIDE - 1) / SIDE, out_tiles = (out_group + SIDE - 1) / SIDE;
    Counter tile = counter_at(blockIdx.x / in_tiles, groups, out_tiles);  // tap, group, tile of o
    int first_c = blockIdx.x % in_tiles * SIDE, first_o = tile.low * SIDE, lane = threadIdx.x % 32;
    for (int row = threadIdx.x / 32; row < SIDE; row += THREADS / 32) {
        int c = first_c + row, o = first_o + lane;
        if (c < in_group && o < out_group)
            square[row][lane] =
                weights[((int64(tile.high) * in_group + c) * groups + tile.middle) * out_group + o];
    }
    SYNC();
    for (int row = threadIdx.x / 32; row < SIDE; row += THREADS / 32) {
        int o = first_o + row, c = first_c + lane;
        if (c < in_group && o < out_group)
            turned[((int64(tile.high) * out_group + o) * groups + tile.middle) * in_group + c] = square[lane][row];
    }
}
