// Max pooling and unpooling: see max_pool2d.py. One thread, WIDTH neighbouring channels of one pixel of the result.
// Positions in windows are bytes, in `index`; windows of more than 256 cells have them in `wide_index` instead.

typedef pack<WIDTH> channels_of_thread;

struct Positions {
    int v[WIDTH];
};

DEVICE Positions load_positions(const uint8 *index, const int *wide_index, int64 at) {
    Positions where;
    for (int k = 0; k < WIDTH; ++k)
        where.v[k] = index ? index[at + k] : wide_index[at + k];
    return where;
}

KERNEL(256, 4) void max_pool_forward(const scalar *x, int pixels, int C, int width, int H, int W, int P, int Q, int R,
                                     int S, int down, int right, int top, int left, scalar *y, uint8 *index,
                                     int *wide_index) {
    Spot spot = spot_of_thread(width);
    int c = spot.channel * WIDTH;
    if (spot.pixel >= pixels || c >= C)
        return;
    int q = spot.pixel % Q, p = spot.pixel / Q % P, n = spot.pixel / Q / P;
    int h0 = p * down - top, w0 = q * right - left;
    const scalar *image = x + int64(n) * H * W * C + c;
    channels_of_thread largest;
    Positions where;
    bool first = true;
    for (int r = max(0, -h0); r < min(R, H - h0); ++r)
        for (int s = max(0, -w0); s < min(S, W - w0); ++s) {
            channels_of_thread cell = load<WIDTH>(image + (int64(h0 + r) * W + w0 + s) * C);
            for (int k = 0; k < WIDTH; ++k) {
                scalar value = cell.v[k], old = largest.v[k];
                if (first || value > old || (value != value && old == old)) {  // the first NaN wins
                    largest.v[k] = value;
                    where.v[k] = r * S + s;
                }
            }
            first = false;
        }
    int64 at = int64(spot.pixel) * C + c;
    store<WIDTH>(y + at, largest);
    for (int k = 0; k < WIDTH; ++k)
        if (index)
            index[at + k] = uint8(where.v[k]);
        else
            wide_index[at + k] = where.v[k];
}

// A x: for each window, the cell that its position points to.
KERNEL(256, 4) void max_pool_pick(const scalar *x, const uint8 *index, const int *wide_index, int pixels, int C,
                                  int width, int H, int W, int P, int Q, int R, int S, int down, int right, int top,
                                  int left, scalar *y) {
    Spot spot = spot_of_thread(width);
    int c = spot.channel * WIDTH;
    if (spot.pixel >= pixels || c >= C)
        return;
    int q = spot.pixel % Q, p = spot.pixel / Q % P, n = spot.pixel / Q / P;
    int64 at = int64(spot.pixel) * C + c;
    Positions where = load_positions(index, wide_index, at);
    channels_of_thread picked;
    for (int k = 0; k < WIDTH; ++k) {
        int h = p * down - top + where.v[k] / S, w = q * right - left + where.v[k] % S;
        bool inside = 0 <= h && h < H && 0 <= w && w < W && where.v[k] < R * S;
        picked.v[k] = inside ? x[((int64(n) * H + h) * W + w) * C + c + k] : 0;
    }
    store<WIDTH>(y + at, picked);
}

// A^T y: each cell of the image asks the windows that cover it, those with p * down <= h + top < p * down + R.
KERNEL(256, 4) void max_pool_put(const scalar *y, const uint8 *index, const int *wide_index, int pixels, int C,
                                 int width, int H, int W, int P, int Q, int R, int S, int down, int right, int top,
                                 int left, scalar *x) {
    Spot spot = spot_of_thread(width);
    int c = spot.channel * WIDTH;
    if (spot.pixel >= pixels || c >= C)
        return;
    int i = spot.pixel / W % H + top, j = spot.pixel % W + left, n = spot.pixel / W / H;
    int first_p = i < R ? 0 : (i - R) / down + 1, last_p = min(P - 1, i / down);
    int first_q = j < S ? 0 : (j - S) / right + 1, last_q = min(Q - 1, j / right);
    channels_of_thread total;
    for (int k = 0; k < WIDTH; ++k)
        total.v[k] = 0;
    for (int p = first_p; p <= last_p; ++p)
        for (int q = first_q; q <= last_q; ++q) {
            int64 at = ((int64(n) * P + p) * Q + q) * C + c;
            int tap = (i - p * down) * S + j - q * right;
            channels_of_thread values = load<WIDTH>(y + at);
            Positions where = load_positions(index, wide_index, at);
            for (int k = 0; k < WIDTH; ++k)
                total.v[k] += where.v[k] == tap ? values.v[k] : 0;
        }
    store<WIDTH>(x + int64(spot.pixel) * C + c, total);
}
