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
#pragma unroll
    for (int k = 0; k < TAPS; ++k) {
        store<WIDTH>(&exchange[threadIdx.x * WIDTH], sums[k]);
        SYNC();
        if (row == 0 && channel < channels && first_tap + k < taps) {
            pack<WIDTH, real> total;
#pragma unroll
            for (int c = 0; c < WIDTH; ++c) {
                double all = 0;
                for (int other = 0; other < rows; ++other)
                    all += exchange[(other * width + threadIdx.x) * WIDTH + c];
                total.v[c] = all;
            }
            store<WIDTH>(partial + (int64(blockIdx.x) * taps + first_tap + k) * channels + channel, total);
        }
        SYNC();
    }
}
