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
    Place here = place_of_thread(pixels, C, width, P, Q, WIDTH);
    if (!here.inside)
        return;
    int h0 = here.row * down - top, w0 = here.column * right - left;
    const scalar *image = x + int64(here.n) * H * W * C + here.c;
    channels_of_thread largest;
    Positions where;
    bool first = true;
    for (int r = max(0, -h0); r < min(R, H - h0); ++r)
        for (int s = max(0, -w0); s < min(S, W - w0); ++s) {
            channels_of_thread cell = load<WIDTH>(image + (int64(h0 + r) * W + w0 + s) * C);
            for (int k = 0; k < WIDTH; ++k)
                if (first || is_larger(cell.v[k], largest.v[k])) {
                    largest.v[k] = cell.v[k];
                    where.v[k] = r * S + s;
                }
            first = false;
        }
    store<WIDTH>(y + here.at, largest);
    for (int k = 0; k < WIDTH; ++k)
        if (index)
            index[here.at + k] = uint8(where.v[k]);
        else
            wide_index[here.at + k] = where.v[k];
}

// A x: for each window, the cell that its position points to.
KERNEL(256, 4) void max_pool_pick(const scalar *x, const uint8 *index, const int *wide_index, int pixels, int C,
                                  int width, int H, int W, int P, int Q, int R, int S, int down, int right, int top,
                                  int left, scalar *y) {
    Place here = place_of_thread(pixels, C, width, P, Q, WIDTH);
    if (!here.inside)
        return;
    Positions where = load_positions(index, wide_index, here.at);
    channels_of_thread picked;
    for (int k = 0; k < WIDTH; ++k) {
        int h = here.row * down - top + where.v[k] / S, w = here.column * right - left + where.v[k] % S;
        bool inside = 0 <= h && h < H && 0 <= w && w < W && where.v[k] < R * S;
        picked.v[k] = inside ? x[((int64(here.n) * H + h) * W + w) * C + here.c + k] : scalar(0);
    }
    store<WIDTH>(y + here.at, picked);
}

// A^T y: each cell of the image asks the windows that hold it.
KERNEL(256, 4) void max_pool_put(const scalar *y, const uint8 *index, const int *wide_index, int pixels, int C,
                                 int width, int H, int W, int P, int Q, int R, int S, int down, int right, int top,
                                 int left, scalar *x) {
    Place here = place_of_thread(pixels, C, width, H, W, WIDTH);
    if (!here.inside)
        return;
    int i = here.row + top, j = here.column + left;
    Range over_p = windows_of(i, R, down, P), over_q = windows_of(j, S, right, Q);
    pack<WIDTH, real> total = {};
    for (int p = over_p.first; p <= over_p.last; ++p)
        for (int q = over_q.first; q <= over_q.last; ++q) {
            int64 at = ((int64(here.n) * P + p) * Q + q) * C + here.c;
            int tap = (i - p * down) * S + j - q * right;
            channels_of_thread values = load<WIDTH>(y + at);
            Positions where = load_positions(index, wide_index, at);
            for (int k = 0; k < WIDTH; ++k)
                total.v[k] += where.v[k] == tap ? values.v[k] : scalar(0);
        }
    store<WIDTH>(x + here.at, total);
}
