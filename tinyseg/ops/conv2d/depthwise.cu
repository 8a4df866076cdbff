// Depthwise convolution, where each channel has kernels of its own: see depthwise.py. There is no matrix product
// in it: a source element meets R S numbers and no more, so it is all about reading memory well. Neighbouring
// threads have neighbouring channels, WIDTH of them each, and read them with one instruction.

constexpr int STRIP = 4;  // output pixels side by side that a thread makes: it reads a weight once for all of them
constexpr int TAPS = 9;   // taps that a thread sums for the gradient of the weights: it reads dy once for all

// out[n, phase + i * stride, j] = bias[j] + sum over taps and m < terms of
//     source[n, i * step + offset(tap), k + m] * weights[tap, j * terms + m],      k = j / copies * terms.
// Forward, `copies` output channels see the same source channel, and there is one term. In the gradient of the
// data there is one copy, and a term for each of the channels that saw it. With WIDTH = 4 both are 1. Blocks along
// x: WIDTH channels of a strip by each thread, channels fastest; along y: phases.
KERNEL(256, 2) void depthwise_product(
    const scalar *source, const real *weights, const real *bias, scalar *out,
    int images, int channels, int copies, int terms,
    int source_height, int out_height, int tap_rows, int row_step, int row_stride, int row_origin,
    int row_spread, int source_width, int out_width, int tap_columns, int column_step, int column_stride,
    int column_origin, int column_spread) {
    Axis vertical = {source_height, out_height, tap_rows, row_step, row_stride, row_origin, row_spread};
    Axis horizontal = {source_width,  out_width,     tap_columns,  column_step,
                       column_stride, column_origin, column_spread};
    int row_phase = blockIdx.y / phases_of(horizontal), column_phase = blockIdx.y % phases_of(horizontal);
    int grid_height = count_of_phase(vertical, row_phase), grid_width = count_of_phase(horizontal, column_phase);
    int strips = (grid_width + STRIP - 1) / STRIP, runs = channels / WIDTH;
    int64 number = thread_number(), strip = number / runs;
    if (strip >= int64(images) * grid_height * strips)
        return;
    Counter at = counter_at(strip, grid_height, strips);  // image, row, strip of columns
    int channel = number % runs * WIDTH, i = at.middle, j = at.low * STRIP;
    int from = channel / copies * terms, source_channels = channels / copies * terms;
    int all_weights = channels * terms;
    Taps down = taps_of_phase(vertical, row_phase), across = taps_of_phase(horizontal, column_phase);

    pack<WIDTH, real> sums[STRIP] = {};
    for (int k = 0; k < down.count; ++k) {
        int h = i * row_step + offset_of(down, k);
        if (h < 0 || h >= source_height)
            continue;
        const scalar *row = source + (int64(at.high) * source_height + h) * source_width * source_channels + from;
        for (int l = 0; l < across.count; ++l) {
            int tap = tap_of(down, k) * tap_columns + tap_of(across, l);
            int v = j * column_step + offset_of(across, l);
            for (int m = 0; m < terms; ++m) {
                pack<WIDTH, real> w = load<WIDTH>(weights + int64(tap) * all_weights + channel * terms + m);
#pragma unroll
                for (int s = 0; s < STRIP; ++s) {
                    int column = v + s * column_step;
                    if (column < 0 || column >= source_width)
                        continue;
                    pack<WIDTH> values = load<WIDTH>(row + int64(column) * source_channels + m);
#pragma unroll
                    for (int c = 0; c < WIDTH; ++c)
                        sums[s].v[c] += values.v[c] * w.v[c];
                }
            }
        }
    }
    pack<WIDTH, real> added = {};
    if (bias)
        added = load<WIDTH>(bias + channel);
    int64 out_row = (int64(at.high) * out_height + row_phase + i * row_stride) * out_width;
#pragma unroll
    for (int s = 0; s < STRIP; ++s) {
        if (j + s >= grid_width)
            continue;
#pragma unroll
        for (int c = 0; c < WIDTH; ++c)
            sums[s].v[c] += added.v[c];
        store<WIDTH>(out + (out_row + column_phase + (j + s) * column_stride) * channels + channel, sums[s]);
    }
}

// to[k * channels] = the sum of sums[k] over the rows of `width` threads, for k < `count`.
DEVICE void add_up(const pack<WIDTH, real> *sums, real *exchange, int width, int count, real *to, int channels) {
#pragma unroll
    for (int k = 0; k < TAPS; ++k) {
        store<WIDTH>(&exchange[threadIdx.x * WIDTH], sums[k]);
        SYNC();
        if (threadIdx.x < width && k < count) {
            pack<WIDTH, real> total;
#pragma unroll
            for (int c = 0; c < WIDTH; ++c) {
                double all = 0;
                for (int other = threadIdx.x; other < 256; other += width)
                    all += exchange[other * WIDTH + c];
                total.v[c] = all;
            }
            store<WIDTH>(to + k * channels, total);
        }
        SYNC();
    }
}

// partial[part, tap, o] = sum over the part's pixels (n, p, q) of x[n, h, v, o / copies] * dy[n, p, q, o]. `width`
// threads, a power of 2, stand side by side along the channels; the 256 / width rows of threads take the part's
// pixels in turn, and are added up at the end. Blocks along x: parts; along y: runs of channels; along z: taps.
KERNEL(256, 1) void depthwise_weight_gradient(
    const scalar *x, const scalar *dy, real *partial, int images, int channels, int copies, int width,
    int part_pixels, int height, int out_height, int tap_rows, int row_step, int row_origin, int row_spread,
    int image_width, int out_width, int tap_columns, int column_step, int column_origin, int column_spread) {
    SHARED real exchange[256 * WIDTH];
    int rows = 256 / width, row = threadIdx.x / width;
    int channel = (blockIdx.y * width + threadIdx.x % width) * WIDTH, from = channel / copies;
    int first_tap = blockIdx.z * TAPS, taps = tap_rows * tap_columns;
    int first = blockIdx.x * part_pixels, last = min(first + part_pixels, images * out_height * out_width);
    int row_offset[TAPS], column_offset[TAPS];
#pragma unroll
    for (int k = 0; k < TAPS; ++k) {
        int tap = min(first_tap + k, taps - 1);  // those beyond the last are calculated, and not used
        row_offset[k] = row_origin + tap / tap_columns * row_spread;
        column_offset[k] = column_origin + tap % tap_columns * column_spread;
    }
    Counter at = counter_at(first + row, out_height, out_width);
    pack<WIDTH, real> sums[TAPS] = {};
    for (int pixel = first + row; pixel < last && channel < channels; pixel += rows) {
        pack<WIDTH> gradient = load<WIDTH>(dy + int64(pixel) * channels + channel);
        const scalar *image = x + int64(at.high) * height * image_width * (channels / copies) + from;
#pragma unroll
        for (int k = 0; k < TAPS; ++k) {
            int h = at.middle * row_step + row_offset[k], v = at.low * column_step + column_offset[k];
            if (h < 0 || h >= height || v < 0 || v >= image_width)
                continue;
            pack<WIDTH> values = load<WIDTH>(image + (int64(h) * image_width + v) * (channels / copies));
#pragma unroll
            for (int c = 0; c < WIDTH; ++c)
                sums[k].v[c] += values.v[c] * gradient.v[c];
        }
        advance(at, rows, out_height, out_width);
    }
    real *to = partial + (int64(blockIdx.x) * taps + first_tap) * channels + channel;
    add_up(sums, exchange, width, channel < channels ? taps - first_tap : 0, to, channels);
}

// ------------------------------------------------------------------------------ kernels of 3 x 3 with stride 1
// They are for as many output channels as source channels. A thread takes a strip, TALL output pixels below each
// other, `row_spread` rows apart, which is the dilation: so a source row meets up to three of them, and is read
// once for all. Rows fall into `row_spread` phases, or as many as there are rows; strip  run * phases + phase
// starts at the output row  run * TALL * row_spread + phase.

constexpr int TALL = 4;

DEVICE int first_row_of(uint32 strip, int out_height, int row_spread) {
    uint32 phases = min(row_spread, out_height), run = strip / phases;
    return strip - run * phases + run * TALL * row_spread;
}

// WIDTH numbers as they are calculated with; zeros where `valid` is false, and then `from` is not read.
DEVICE pack<WIDTH, real> load_or_zero(const scalar *from, bool valid) {
    pack<WIDTH, real> values = {};
    if (valid) {
        pack<WIDTH> stored = load<WIDTH>(from);
#pragma unroll
        for (int c = 0; c < WIDTH; ++c)
            values.v[c] = stored.v[c];
    }
    return values;
}

// The three columns of an image that meet an output column, read a row at a time. Outside of the image is 0.
struct Columns {
    const scalar *at;  // the first column in the next row
    int row, height, row_spread, row_step, column_step;  // steps: elements from one row or column to the next
    bool inside[3];

    // image: at the thread's channel.
    DEVICE Columns(const scalar *image, int row, int column, int height, int width, int channels, int row_spread,
                   int column_spread)
        : at(image + (int64(row) * width + column) * channels), row(row), height(height), row_spread(row_spread),
          row_step(row_spread * width * channels), column_step(column_spread * channels) {
#pragma unroll
        for (int l = 0; l < 3; ++l)
            inside[l] = uint32(column + l * column_spread) < uint32(width);
    }

    DEVICE void load_row(pack<WIDTH, real> *values) {
#pragma unroll
        for (int l = 0; l < 3; ++l)
            values[l] = load_or_zero(at + l * column_step, uint32(row) < uint32(height) && inside[l]);
        at += row_step;
        row += row_spread;
    }
};

// The same as depthwise_product. `turned`: the taps come in the opposite order, and the origins are the offsets of
// the last one. `width` threads, a power of 2, stand side by side along the channels, and the 256 / width rows of
// threads along the columns: neighbours read the same source columns. Blocks along x: columns, with the `runs` of
// channels fastest; along y: strips; along z: images.
KERNEL(256, 2) void depthwise_3x3(
    const scalar *source, const real *weights, const real *bias, scalar *out, int channels, int width, int runs,
    bool turned, int source_height, int out_height, int row_origin, int row_spread,
    int source_width, int out_width, int column_origin, int column_spread) {
    uint32 block = blockIdx.x / runs, number = block * 256 + threadIdx.x;
    int column = number / width, channel = ((blockIdx.x - block * runs) * width + number % width) * WIDTH;
    int row = first_row_of(blockIdx.y, out_height, row_spread);
    if (column >= out_width || channel >= channels)
        return;
    Columns columns(source + int64(blockIdx.z) * source_height * source_width * channels + channel,
                    row + row_origin, column + column_origin, source_height, source_width, channels, row_spread,
                    column_spread);
    pack<WIDTH, real> w[9], sums[TALL] = {};
    const real *tap = weights + (turned ? 8 * channels : 0) + channel;
    int next_tap = turned ? -channels : channels;
#pragma unroll
    for (int t = 0; t < 9; ++t, tap += next_tap)
        w[t] = load<WIDTH>(tap);
#pragma unroll
    for (int r = 0; r < TALL + 2; ++r) {
        pack<WIDTH, real> values[3];
        columns.load_row(values);
#pragma unroll
        for (int s = max(r - 2, 0); s <= min(r, TALL - 1); ++s)
#pragma unroll
            for (int l = 0; l < 3; ++l)
#pragma unroll
                for (int c = 0; c < WIDTH; ++c)
                    sums[s].v[c] += values[l].v[c] * w[(r - s) * 3 + l].v[c];
    }
    pack<WIDTH, real> added = {};
    if (bias)
        added = load<WIDTH>(bias + channel);
    scalar *to = out + ((int64(blockIdx.z) * out_height + row) * out_width + column) * channels + channel;
    int next_row = row_spread * out_width * channels;
#pragma unroll
    for (int s = 0; s < TALL; ++s, to += next_row) {
        if (row + s * row_spread >= out_height)
            break;
#pragma unroll
        for (int c = 0; c < WIDTH; ++c)
            sums[s].v[c] += added.v[c];
        store<WIDTH>(to, sums[s]);
    }
}

// The same as depthwise_weight_gradient, but parts are of strips, one in each column of each run and phase.
// `strips`: of an image, below each other.
KERNEL(256, 2) void depthwise_3x3_weight_gradient(
    const scalar *x, const scalar *dy, real *partial, int images, int channels, int width, int strips,
    int part_strips, int height, int out_height, int row_origin, int row_spread,
    int image_width, int out_width, int column_origin, int column_spread) {
    SHARED real exchange[256 * WIDTH];
    int channel = (blockIdx.y * width + threadIdx.x % width) * WIDTH, threads = 256 / width;
    int first = blockIdx.x * part_strips, last = min(first + part_strips, images * strips * out_width);
    pack<WIDTH, real> sums[TAPS] = {};
    for (int number = first + threadIdx.x / width; number < last && channel < channels; number += threads) {
        uint32 line = uint32(number) / out_width, image = line / strips;
        int column = number - line * out_width, row = first_row_of(line - image * strips, out_height, row_spread);
        Columns columns(x + int64(image) * height * image_width * channels + channel, row + row_origin,
                        column + column_origin, height, image_width, channels, row_spread, column_spread);
        const scalar *from = dy + ((int64(image) * out_height + row) * out_width + column) * channels + channel;
        pack<WIDTH, real> gradients[TALL];
#pragma unroll
        for (int r = 0; r < TALL + 2; ++r) {
            if (r < TALL) {
                gradients[r] = load_or_zero(from, row + r * row_spread < out_height);
                from += row_spread * out_width * channels;
            }
            pack<WIDTH, real> values[3];
            columns.load_row(values);
#pragma unroll
            for (int s = max(r - 2, 0); s <= min(r, TALL - 1); ++s)
#pragma unroll
                for (int l = 0; l < 3; ++l)
#pragma unroll
                    for (int c = 0; c < WIDTH; ++c)
                        sums[(r - s) * 3 + l].v[c] += values[l].v[c] * gradients[s].v[c];
        }
    }
    real *to = partial + int64(blockIdx.x) * 9 * channels + channel;
    add_up(sums, exchange, width, channel < channels ? 9 : 0, to, channels);
}
