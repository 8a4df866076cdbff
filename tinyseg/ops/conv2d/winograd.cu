// Convolution 3 x 3 with stride 1 by Winograd's algorithm, all of it in one kernel: see winograd.py.
//
// 512 threads, sixteen warps, calculate 8 x 16 pixels of COLUMNS channels, as 32 tiles of 2 x 2 pixels. They take
// 8 source channels at a time. The 10 x 18 pixels that the tiles look at are copied to shared memory; half of the
// threads transform a patch of 4 x 4 each. That makes sixteen left matrices, one for each product of the
// algorithm; the right matrices are transformed weights. Warp e multiplies matrices number e, 32 tiles x 8
// channels by 8 channels x COLUMNS, and a lane keeps 8 x 8 of the numbers in registers (8 x 4 for double). For
// each of the channels it reads 8 + 8 numbers and does 64 multiplications with them.
//
// While channels i are multiplied, channels i + 1 are transformed, and channels i + 2 are on their way.
//
// WIDTH: how many neighbouring channels of the source are copied at once, 1 or 4.

constexpr int THREADS = 512, TILE_ROWS = 4, TILE_COLUMNS = 8, TILES = TILE_ROWS * TILE_COLUMNS;
constexpr int PRODUCTS = 16, DEPTH = 8, COLUMNS = 256 / sizeof(scalar), PACKS = COLUMNS / 32;
constexpr int HEIGHT = 2 * TILE_ROWS, WIDTH_OF_BLOCK = 2 * TILE_COLUMNS;  // pixels that a block makes
constexpr int FIELD_WIDTH = WIDTH_OF_BLOCK + 2, FIELD = (HEIGHT + 2) * FIELD_WIDTH;  // pixels that it looks at

// Memory comes in 32 banks of 4 bytes, and 32 lanes are served at once if their banks differ. Lanes that transform
// have 8 channels of 4 tiles side by side. So each row of the field has first the columns with even numbers, then
// the odd ones: neighbouring tiles read neighbouring memory. And 4 more numbers after each channel of the left
// matrices let 8 channels begin in different banks.
constexpr int PITCH = PRODUCTS * TILES + 4;
constexpr int LEFT = FIELD * DEPTH, RIGHT = LEFT + DEPTH * PITCH;  // where matrices begin in a stage
constexpr int RIGHT_SIZE = DEPTH * PRODUCTS * COLUMNS, STAGE = RIGHT + RIGHT_SIZE;

DEVICE int place_in_row(int column) { return column % 2 * (FIELD_WIDTH / 2) + column / 2; }

// One axis of the three transformations. The products of their results add up to a convolution.
DEVICE quad transform_source(const scalar *d) { return {{d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]}}; }

DEVICE quad transform_weights(const scalar *g) {
    scalar outer = g[0] + g[2], half = scalar(0.5);
    return {{g[0], (outer + g[1]) * half, (outer - g[1]) * half, g[2]}};
}

DEVICE void add_products(const scalar *m, scalar *y) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
}

// transformed[t, c, e, i] = product e's factor from the weights [., ., c, o] with o = t * COLUMNS + i; 0 beyond
// the ends of both. A block needs one t, its channels one after the other. In the gradient of the data the weights
// are [., ., o, c], and their taps come in reverse. One thread for each (t, c, i).
KERNEL(256, 4) void prepare_weights(const scalar *weights, scalar *transformed, int in_channels, int out_channels,
                                    bool turned, int rows, int64 count) {
    int64 number = thread_number();
    if (number >= count)
        return;
    int i = number % COLUMNS, c = number / COLUMNS % rows, o = number / COLUMNS / rows * COLUMNS + i;
    bool inside = c < in_channels && o < out_channels;
    int64 from = turned ? int64(o) * in_channels + c : int64(c) * out_channels + o;
    int64 apart = int64(in_channels) * out_channels;
    quad across[3];
#pragma unroll
    for (int r = 0; r < 3; ++r) {
        scalar g[3];
#pragma unroll
        for (int s = 0; s < 3; ++s) {
            int tap = 3 * r + s;
            g[s] = inside ? weights[from + (turned ? 8 - tap : tap) * apart] : scalar(0);
        }
        across[r] = transform_weights(g);
    }
    scalar *to = transformed + (number / COLUMNS * PRODUCTS) * COLUMNS + i;
#pragma unroll
    for (int column = 0; column < 4; ++column) {
        scalar g[3] = {across[0].v[column], across[1].v[column], across[2].v[column]};
        quad down = transform_weights(g);
#pragma unroll
        for (int row = 0; row < 4; ++row)
            to[(4 * row + column) * COLUMNS] = down.v[row];
    }
}

// A thread's patch: one of 8 channels, one of 32 tiles.
DEVICE void transform_patch(const scalar *field, scalar *left) {
    int c = threadIdx.x % DEPTH, tile = threadIdx.x / DEPTH;
    field += (tile / TILE_COLUMNS * 2 * FIELD_WIDTH + tile % TILE_COLUMNS) * DEPTH + c;
    quad across[4];
#pragma unroll
    for (int row = 0; row < 4; ++row) {
        scalar d[4];
#pragma unroll
        for (int column = 0; column < 4; ++column)
            d[column] = field[(row * FIELD_WIDTH + place_in_row(column)) * DEPTH];
        across[row] = transform_source(d);
    }
#pragma unroll
    for (int column = 0; column < 4; ++column) {
        scalar d[4] = {across[0].v[column], across[1].v[column], across[2].v[column], across[3].v[column]};
        quad down = transform_source(d);
#pragma unroll
        for (int row = 0; row < 4; ++row)
            left[c * PITCH + (4 * row + column) * TILES + tile] = down.v[row];
    }
}

// A lane has tiles first_tile() + 16 i + 0..3 and columns first_column() + 32 j + 0..3 of its warp's product.
struct Sums {
    scalar v[8][4 * PACKS];
};

DEVICE int first_tile() { return threadIdx.x % 32 / 8 * 4; }

DEVICE int first_column() { return threadIdx.x % 8 * 4; }

DEVICE void multiply(const scalar *left, const scalar *right, Sums &sums) {
    left += threadIdx.x / 32 * TILES + first_tile();
    right += threadIdx.x / 32 * COLUMNS + first_column();
#pragma unroll 2  // more would take more registers than there are
    for (int c = 0; c < DEPTH; ++c) {
        pack<4> a[2], b[PACKS];
#pragma unroll
        for (int i = 0; i < 2; ++i)
            a[i] = load<4>(left + c * PITCH + 16 * i);
#pragma unroll
        for (int j = 0; j < PACKS; ++j)
            b[j] = load<4>(right + c * PRODUCTS * COLUMNS + 32 * j);
#pragma unroll
        for (int i = 0; i < 8; ++i)
#pragma unroll
            for (int j = 0; j < 4 * PACKS; ++j)
                sums.v[i][j] += a[i / 4].v[i % 4] * b[j / 4].v[j % 4];
    }
}

// `count` numbers, a multiple of as many as one asynchronous copy takes.
template <int count> DEVICE void copy_numbers(scalar *to, const scalar *from, bool valid) {
    constexpr int bytes = count * sizeof(scalar) < 16 ? count * sizeof(scalar) : 16, each = bytes / sizeof(scalar);
#pragma unroll
    for (int i = 0; i < count; i += each)
        copy_async<bytes>(to + i, from + i, valid);
}

// out[n, h, v, o] = bias[o] + sum over r, s < 3 and c of
//     source[n, h + top + r, v + left + s, c] * weights[r, s, c, o],
// where `transformed` is what prepare_weights makes of the weights. Dynamic shared memory: two stages. Blocks:
// channel tiles of all pixel tiles.
KERNEL(512, 1) void winograd_product(const scalar *source, const scalar *transformed, const scalar *bias,
                                     scalar *out, int in_channels, int out_channels, int source_height,
                                     int out_height, int top, int source_width, int out_width, int left) {
    DYNAMIC_SHARED(scalar, stages);
    SHARED int place[FIELD];  // of each pixel of the field in the source; -1 is outside
    int channel_tiles = (out_channels + COLUMNS - 1) / COLUMNS;
    int block_columns = (out_width + WIDTH_OF_BLOCK - 1) / WIDTH_OF_BLOCK;
    int block_rows = (out_height + HEIGHT - 1) / HEIGHT;
    int channel_tile = blockIdx.x % channel_tiles, count = (in_channels + DEPTH - 1) / DEPTH;
    Counter block = counter_at(blockIdx.x / channel_tiles, block_rows, block_columns);  // image, row, column
    int first_h = block.middle * HEIGHT, first_v = block.low * WIDTH_OF_BLOCK;
    for (int i = threadIdx.x; i < FIELD; i += THREADS) {
        int column = i % FIELD_WIDTH, h = first_h + top + i / FIELD_WIDTH, v = first_v + left + column;
        bool inside = h >= 0 && h < source_height && v >= 0 && v < source_width;
        place[i - column + place_in_row(column)] =
            inside ? (block.high * source_height + h) * source_width + v : -1;
    }
    SYNC();

    const scalar *factors = transformed + int64(channel_tile) * count * RIGHT_SIZE;
    auto copy_field = [&](int slice) {
        for (int i = threadIdx.x; slice < count && i < FIELD * DEPTH / WIDTH; i += THREADS) {
            int pixel = place[i / (DEPTH / WIDTH)], c = i % (DEPTH / WIDTH) * WIDTH;
            const scalar *from = source + int64(pixel) * in_channels + slice * DEPTH + c;
            bool inside = pixel >= 0 && slice * DEPTH + c < in_channels;
            copy_numbers<WIDTH>(stages + slice % 2 * STAGE + i * WIDTH, from, inside);
        }
    };
    auto copy_weights = [&](int slice) {
        constexpr int each = 16 / sizeof(scalar);
        scalar *right = stages + slice % 2 * STAGE + RIGHT;
        for (int i = threadIdx.x * each; slice < count && i < RIGHT_SIZE; i += THREADS * each)
            copy_numbers<each>(right + i, factors + int64(slice) * RIGHT_SIZE + i, true);
    };
    auto transform = [&](int slice) {
        scalar *stage = stages + slice % 2 * STAGE;
        if (slice < count && threadIdx.x < DEPTH * TILES)
            transform_patch(stage, stage + LEFT);
    };

    copy_field(0);
    close_copies();
    copy_field(1);
    copy_weights(0);
    close_copies();
    wait_copies<1>();
    SYNC();
    transform(0);
    Sums sums = {};
    for (int slice = 0; slice < count; ++slice) {
        wait_copies<0>();
        SYNC();  // all is there, and all are done with the slice before: it makes room for another
        copy_field(slice + 2);
        copy_weights(slice + 1);
        close_copies();
        transform(slice + 1);
        const scalar *stage = stages + slice % 2 * STAGE;
        multiply(stage + LEFT, stage + RIGHT, sums);
    }

    // Each warp has one of the sixteen products for all tiles, and a result takes all sixteen for one tile. So
    // they go through shared memory, 16 tiles at a time.
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        SYNC();
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < PACKS; ++j) {
                const scalar *v = &sums.v[4 * half + i][4 * j];
                scalar *to = stages + (warp * 16 + first_tile() + i) * COLUMNS + first_column() + 32 * j;
                store<4>(to, {{v[0], v[1], v[2], v[3]}});
            }
        SYNC();
        int tile = 16 * half + warp;
        int h = first_h + tile / TILE_COLUMNS * 2, v = first_v + tile % TILE_COLUMNS * 2;
#pragma unroll
        for (int j = 0; j < PACKS; ++j) {
            int channel = channel_tile * COLUMNS + 32 * j + lane;
            scalar across[2][4];  // of a row of four products, two sums
#pragma unroll
            for (int row = 0; row < 4; ++row) {
                scalar m[4], y[2];
#pragma unroll
                for (int column = 0; column < 4; ++column)
                    m[column] = stages[((4 * row + column) * 16 + warp) * COLUMNS + 32 * j + lane];
                add_products(m, y);
                across[0][row] = y[0];
                across[1][row] = y[1];
            }
            scalar added = bias && channel < out_channels ? bias[channel] : scalar(0);
#pragma unroll
            for (int column = 0; column < 2; ++column) {
                scalar y[2];
                add_products(across[column], y);
#pragma unroll
                for (int row = 0; row < 2; ++row) {
                    int64 pixel = (int64(block.high) * out_height + h + row) * out_width + v + column;
                    if (h + row < out_height && v + column < out_width && channel < out_channels)
                        out[pixel * out_channels + channel] = y[row] + added;
                }
            }
        }
    }
}
