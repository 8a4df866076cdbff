// Max pooling and unpooling: see max_pool2d.py. One thread, WIDTH neighbouring channels of one pixel of the result.
// Positions in windows are bytes, in `index`; windows of more than 256 cells have them in `wide_index` instead.

typedef pack<WIDTH> channels_of_thread;
typedef pack<WIDTH, int> positions_of_thread;

DEVICE positions_of_thread load_positions(const uint8 *index, const int *wide_index, int64 at) {
    if (!index)
        return load<WIDTH>(wide_index + at);
    pack<WIDTH, uint8> bytes = load<WIDTH>(index + at);
    positions_of_thread where;
    for (int k = 0; k < WIDTH; ++k)
        where.v[k] = bytes.v[k];
    return where;
}

KERNEL(256, 4) void max_pool_forward(const scalar *x, int pixels, int C, int width, int H, int W, int P, int Q, int R,
                                     int S, int down, int right, int top, int left, scalar *y, uint8 *index,
                                     int *wide_index) {
    Place here = place_of_thread(pixels, C, width, P, Q, WIDTH);
    if (!here.inside)
        return;
    channels_of_thread largest;
    positions_of_thread where;
    bool first = true;
    visit_cells(here, here.row * down - top, here.column * right - left, C, H, W, R, S, [&](int tap, int64 at) {
        channels_of_thread cell = load<WIDTH>(x + at);
        for (int k = 0; k < WIDTH; ++k)
            if (first || is_larger(cell.v[k], largest.v[k])) {
                largest.v[k] = cell.v[k];
                where.v[k] = tap;
            }
        first = false;
    });
    store<WIDTH>(y + here.at, largest);
    if (index)
        store<WIDTH>(index + here.at, where);
    else
        store<WIDTH>(wide_index + here.at, where);
}

// A x: for each window, the cell that its position points to.
KERNEL(256, 4) void max_pool_pick(const scalar *x, const uint8 *index, const int *wide_index, int pixels, int C,
                                  int width, int H, int W, int P, int Q, int R, int S, int down, int right, int top,
                                  int left, scalar *y) {
    Place here = place_of_thread(pixels, C, width, P, Q, WIDTH);
    if (!here.inside)
        return;
    positions_of_thread where = load_positions(index, wide_index, here.at);
    channels_of_thread picked = {};
    visit_cells(here, here.row * down - top, here.column * right - left, C, H, W, R, S, [&](int tap, int64 at) {
        channels_of_thread cell = load<WIDTH>(x + at);
        for (int k = 0; k < WIDTH; ++k)
            picked.v[k] = where.v[k] == tap ? cell.v[k] : picked.v[k];
    });
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
    int last_p = last_window(i, down, P), last_q = last_window(j, right, Q);
    pack<WIDTH, real> total = {};
    for (int p = last_p; p >= 0 && i - p * down < R; --p)
        for (int q = last_q; q >= 0 && j - q * right < S; --q) {
            int64 at = ((int64(here.n) * P + p) * Q + q) * C + here.c;
            int tap = (i - p * down) * S + j - q * right;
            channels_of_thread values = load<WIDTH>(y + at);
            positions_of_thread where = load_positions(index, wide_index, at);
            for (int k = 0; k < WIDTH; ++k)
                total.v[k] += where.v[k] == tap ? values.v[k] : scalar(0);
        }
    store<WIDTH>(x + here.at, total);
}

// The same where windows lie side by side: one thread, all cells of one window. The windows of this launch, cover_p
// by cover_q, cover the image; cells of those beyond P and Q get zeros.
KERNEL(256, 4) void max_pool_put_apart(const scalar *y, const uint8 *index, const int *wide_index, int cover_p,
                                       int cover_q, int pixels, int C, int width, int H, int W, int P, int Q, int R,
                                       int S, int down, int right, int top, int left, scalar *x) {
    Place here = place_of_thread(pixels, C, width, cover_p, cover_q, WIDTH);
    if (!here.inside)
        return;
    channels_of_thread values = {};
    positions_of_thread where = {};
    if (here.row < P && here.column < Q) {
        int64 at = ((int64(here.n) * P + here.row) * Q + here.column) * C + here.c;
        values = load<WIDTH>(y + at);
        where = load_positions(index, wide_index, at);
    }
    visit_cells(here, here.row * down - top, here.column * right - left, C, H, W, R, S, [&](int tap, int64 at) {
        channels_of_thread cell;
        for (int k = 0; k < WIDTH; ++k)
            cell.v[k] = where.v[k] == tap ? values.v[k] : scalar(0);
        store<WIDTH>(x + at, cell);
    });
}
