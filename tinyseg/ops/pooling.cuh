// What the pooling operators share: where a thread stands, which windows hold a cell, and which number is the larger.

// One thread looks after `pack` neighbouring channels, from c on, of one pixel of its result (N, height, width, C).
struct Place {
    bool inside;  // of the result
    int n, row, column, c;
    int64 at;  // the offset of its first channel
};

DEVICE Place place_of_thread(int pixels, int C, int side, int height, int width, int pack = 1) {
    Spot spot = spot_of_thread(side);
    int row = spot.pixel / width, c = spot.channel * pack;
    bool inside = spot.pixel < pixels && c < C;
    return {inside, row / height, row % height, int(spot.pixel % width), c, int64(spot.pixel) * C + c};
}

// From `first` to `last`, in one direction.
struct Range {
    int first, last;
};

// The windows of `size` cells, `step` apart, that hold cell i of the padded image: step * p <= i < step * p + size.
DEVICE Range windows_of(int i, int size, int step, int count) {
    return {i < size ? 0 : (i - size) / step + 1, min(count - 1, i / step)};
}

// Whether a number takes the place of the largest so far. The first of equals stays, and the first NaN wins.
DEVICE bool is_larger(scalar value, scalar largest) {
    return value > largest || (value != value && largest == largest);
}
