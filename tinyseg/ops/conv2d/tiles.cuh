// What the two products of convolution have in common, however they are multiplied: which tile of a product a
// block makes, and the loops that look up the numbers of its slices. implicit_gemm.cu and tensor_cores.cu say by
// `copy` how a run of neighbouring numbers comes to shared memory: copy(pass, offset, inside), with the offset of
// the first one in its array. Where they are not inside, they are 0, and must not be read.

constexpr int ROWS = 128, COLUMNS = 64;  // of the product that a block makes

struct Pixel {
    int64 offset;  // of its first channel in the source, when tap offsets are 0
    int h, v;
};

DEVICE bool is_inside(const Axis &vertical, const Axis &horizontal, int h, int v) {
    return uint32(h) < uint32(vertical.source) && uint32(v) < uint32(horizontal.source);  // below 0 is large
}

// Where the taps of a pixel `at` (image, row, column) of the output look from. One that does not exist looks from
// outside of every image.
DEVICE Pixel source_pixel(const Axis &vertical, const Axis &horizontal, const Counter &at, bool exists,
                          int channels, int first_channel) {
    int h = at.middle * vertical.step, v = at.low * horizontal.step;
    int64 offset = (int64(at.high) * vertical.source + h) * horizontal.source + v;
    return {offset * channels + first_channel, exists ? h : -(1 << 30), v};
}

// A thread's part of a left slice: the same tap and channel for each of its pixels.
template <int passes, int apart, typename Copy>
DEVICE void fill_with_pixels(const Axis &vertical, const Axis &horizontal, const Pixel *pixels, int row_offset,
                             int column_offset, int channels, int channel, bool exists, Copy copy) {
    int64 tap_offset = (int64(row_offset) * horizontal.source + column_offset) * channels + channel;
#pragma unroll
    for (int pass = 0; pass < passes; ++pass) {
        Pixel pixel = pixels[pass * apart];
        bool inside = is_inside(vertical, horizontal, pixel.h + row_offset, pixel.v + column_offset);
        copy(pass, pixel.offset + tap_offset, inside && exists);
    }
}

// ------------------------------------------------------------------------------------------------ gather_product
// A row of the product is a pixel (n, i, j) of a phase, a column a channel o; the sum runs over (tap row, tap
// column, c), c fastest. Blocks along x: channel tiles of all phases of all pixel tiles; along y: groups.

struct Gather {
    Axis vertical, horizontal;
    int in_group, out_group, in_channels, out_channels, group, first_channel;
    int row_phase, column_phase, height, width;  // the phase, and how many of its pixels an image has
    int pixels, first_pixel;                     // of the phase in all images; of the tile
    Taps down, across;
};

// With no pixels left for the block, pixels <= first_pixel: other phases have more.
DEVICE Gather gather_of_block(const Axis &vertical, const Axis &horizontal, int images, int in_group,
                              int out_group) {
    Gather gather = {vertical, horizontal, in_group, out_group};
    gather.in_channels = in_group * gridDim.y;
    gather.out_channels = out_group * gridDim.y;
    int channel_tiles = (out_group + COLUMNS - 1) / COLUMNS;
    int phases = phases_of(vertical) * phases_of(horizontal), phase = blockIdx.x / channel_tiles % phases;
    gather.group = blockIdx.y;
    gather.first_channel = blockIdx.x % channel_tiles * COLUMNS;
    gather.row_phase = phase / phases_of(horizontal);
    gather.column_phase = phase % phases_of(horizontal);
    gather.height = count_of_phase(vertical, gather.row_phase);
    gather.width = count_of_phase(horizontal, gather.column_phase);
    gather.pixels = images * gather.height * gather.width;
    gather.first_pixel = blockIdx.x / channel_tiles / phases * ROWS;
    gather.down = taps_of_phase(vertical, gather.row_phase);
    gather.across = taps_of_phase(horizontal, gather.column_phase);

    Counter from = counter_at(gather.first_pixel, gather.height, gather.width);
    Counter to = counter_at(min(gather.first_pixel + ROWS, gather.pixels) - 1, gather.height, gather.width);
    bool one_image = from.high == to.high;
    leave_out_padding(gather.down, one_image ? from.middle * vertical.step : 0,
                      (one_image ? to.middle : gather.height - 1) * vertical.step, vertical.source);
    leave_out_padding(gather.across, 0, (gather.width - 1) * horizontal.step, horizontal.source);
    return gather;
}

DEVICE int length_of_sum(const Gather &gather) {
    return gather.down.count * gather.across.count * gather.in_group;
}

DEVICE Counter place_in_sum(const Gather &gather, int number) {
    return counter_at(number, max(gather.across.count, 1), gather.in_group);
}

DEVICE void move_on(const Gather &gather, Counter &place, int by) {
    advance(place, by, max(gather.across.count, 1), gather.in_group);
}

DEVICE Pixel source_pixel(const Gather &gather, int row) {
    int number = gather.first_pixel + row;
    return source_pixel(gather.vertical, gather.horizontal, counter_at(number, gather.height, gather.width),
                        number < gather.pixels, gather.in_channels, gather.group * gather.in_group);
}

// Of the group's first channel in out, for a row of the tile.
DEVICE int64 out_offset(const Gather &gather, int row) {
    Counter at = counter_at(gather.first_pixel + row, gather.height, gather.width);
    int h = gather.row_phase + at.middle * gather.vertical.stride;
    int v = gather.column_phase + at.low * gather.horizontal.stride;
    int64 pixel = (int64(at.high) * gather.vertical.out + h) * gather.horizontal.out + v;
    return pixel * gather.out_channels + gather.group * gather.out_group;
}

// A thread's part of a left slice: the same place in the sum for each of its rows.
template <int passes, int apart, typename Copy>
DEVICE void fill_with_patches(const Gather &gather, const Pixel *pixel_of_row, int row, const Counter &place,
                              Copy copy) {
    fill_with_pixels<passes, apart>(gather.vertical, gather.horizontal, pixel_of_row + row,
                                    offset_of(gather.down, place.high), offset_of(gather.across, place.middle),
                                    gather.in_channels, place.low, place.high < gather.down.count, copy);
}

// A thread's part of a right slice: rows of the weights, each a place in the sum. It moves on to the next slice.
template <int passes, int apart, typename Copy>
DEVICE void fill_with_weights(const Gather &gather, Counter &place, Copy copy) {
#pragma unroll
    for (int pass = 0; pass < passes; ++pass) {
        int tap = tap_of(gather.down, place.high) * gather.horizontal.taps + tap_of(gather.across, place.middle);
        int64 row = (int64(tap) * gather.in_group + place.low) * gather.out_channels;
        copy(pass, row + gather.group * gather.out_group, place.high < gather.down.count);
        move_on(gather, place, apart);
    }
}

// ----------------------------------------------------------------------------------------------- weight_gradient
// A row of the product is a (tap row, tap column, c), a column a channel o; the sum runs over the `part_pixels`
// pixels of a part. Blocks along x: row tiles of all parts; along y: channel tiles; along z: groups.

struct Correlation {
    Axis vertical, horizontal;
    int in_group, out_group, in_channels, out_channels, group, first_channel;
    int rows, first_row;  // of the product, of the tile
    int part, first_pixel, last_pixel;
};

DEVICE Correlation correlation_of_block(const Axis &vertical, const Axis &horizontal, int images, int in_group,
                                        int out_group, int part_pixels) {
    Correlation block = {vertical, horizontal, in_group, out_group};
    block.in_channels = in_group * gridDim.z;
    block.out_channels = out_group * gridDim.z;
    block.group = blockIdx.z;
    block.first_channel = blockIdx.y * COLUMNS;
    block.rows = vertical.taps * horizontal.taps * in_group;
    int row_tiles = (block.rows + ROWS - 1) / ROWS;
    block.first_row = blockIdx.x % row_tiles * ROWS;
    block.part = blockIdx.x / row_tiles;
    block.first_pixel = block.part * part_pixels;
    block.last_pixel = min(block.first_pixel + part_pixels, images * vertical.out * horizontal.out);
    return block;
}

// Of the group's first channel in the partial sums, for a row of the tile.
DEVICE int64 partial_offset(const Correlation &block, int row) {
    int64 number = int64(block.part) * block.rows + block.first_row + row;
    return number * block.out_channels + block.group * block.out_group;
}

// The pixels of two slices, one with an even and one with an odd number: while threads copy from those of one, the
// first `depth` of them note those of the next. So each is looked up once, and not by all that copy from it.
template <int depth> struct PixelsOfSlice {
    Pixel v[2][depth];
};

DEVICE Counter first_to_note(const Correlation &block) {
    return counter_at(block.first_pixel + threadIdx.x, block.vertical.out, block.horizontal.out);
}

// `at` is the thread's pixel of this slice. It moves on to that of the next one.
template <int depth>
DEVICE void note_pixels(const Correlation &block, int slice, Counter &at, PixelsOfSlice<depth> &pixels) {
    if (threadIdx.x >= depth)
        return;
    int number = block.first_pixel + slice * depth + threadIdx.x;
    pixels.v[slice % 2][threadIdx.x] =
        source_pixel(block.vertical, block.horizontal, at, number < block.last_pixel, block.in_channels,
                     block.group * block.in_group);
    advance(at, depth, block.vertical.out, block.horizontal.out);
}

// A thread's part of a left slice: the same tap and channel for each of its pixels, from number `first` of the
// slice on.
template <int passes, int apart, int depth, typename Copy>
DEVICE void fill_with_turned_patches(const Correlation &block, const PixelsOfSlice<depth> &pixels, int slice,
                                     const Counter &tap, int first, Copy copy) {
    fill_with_pixels<passes, apart>(block.vertical, block.horizontal, pixels.v[slice % 2] + first,
                                    block.vertical.origin + tap.high * block.vertical.spread,
                                    block.horizontal.origin + tap.middle * block.horizontal.spread,
                                    block.in_channels, tap.low, tap.high < block.vertical.taps, copy);
}

// A thread's part of a right slice: rows of dy, from pixel number `first` on.
template <int passes, int apart, typename Copy>
DEVICE void fill_with_upstream(const Correlation &block, int first, Copy copy) {
#pragma unroll
    for (int pass = 0; pass < passes; ++pass) {
        int pixel = first + pass * apart;
        copy(pass, int64(pixel) * block.out_channels + block.group * block.out_group, pixel < block.last_pixel);
    }
}
