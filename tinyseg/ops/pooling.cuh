// What the pooling operators share: where a thread stands, the cells of a window, the windows of a cell, and which
// number is the larger.

// One thread looks after `pack` neighbouring channels, from c on, of one pixel of its result (N, height, width, C).
struct Place {
    bool inside;  // of the result
    int n, row, column, c;
    int64 at;  // the offset of its first channel
};

DEVICE Place place_of_thread(int pixels, int C, int side, int height, int width, int pack = 1) {
    Spot spot = spot_of_thread(side);
    uint32 row = spot.pixel / uint32(width), n = row / uint32(height);  // without a sign it takes fewer instructions
    int c = spot.channel * pack;
    bool inside = spot.pixel < pixels && c < C;
    return {inside, int(n), int(row - n * height), int(spot.pixel - row * width), c, int64(spot.pixel) * C + c};
}

// Calls visit(tap, at) for each cell of the image in a window that begins at (h0, w0), in row-major order. The
// cell's number in the window is tap = r * S + s, and its channel c has the offset `at`. Most windows are narrow, and
// unrolling would only lengthen the way to their few cells; an operator with wide ones says how many at once.
template <int at_once = 1, typename Visit>
DEVICE void visit_cells(const Place &window, int h0, int w0, int C, int H, int W, int R, int S, const Visit &visit) {
    int first = max(0, -w0), end = min(S, W - w0), r = max(0, -h0);
    int64 row = ((int64(window.n) * H + h0 + r) * W + w0 + first) * C + window.c;
    for (; r < min(R, H - h0); ++r, row += int64(W) * C) {
        int64 at = row;
#pragma unroll at_once
        for (int s = first; s < end; ++s, at += C)
            visit(r * S + s, at);
    }
}

// The last of `count` windows, `step` apart, that begins at cell i of the padded image or before it. Those that hold
// the cell are this one and some that come before it, as far as they reach.
DEVICE int last_window(int i, int step, int count) { return min(count - 1, int(uint32(i) / uint32(step))); }

// Whether a number takes the place of the largest so far. The first of equals stays, and the first NaN wins.
DEVICE bool is_larger(scalar value, scalar largest) {
    return value > largest || (value != value && largest == largest);
}
