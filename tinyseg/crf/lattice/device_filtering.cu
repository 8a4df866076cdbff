// Splat, blur, slice: see device_filtering.py. Values are rows of C numbers. One thread, WIDTH neighbouring numbers of
// one row; threads that stand side by side take the neighbouring numbers, and go on with the next row.

typedef pack<WIDTH> numbers;

struct Share {
    int64 row;
    int c;  // the thread's first number in the row
};

DEVICE Share share_of_thread(int C) {
    int64 number = thread_number();
    int packs = C / WIDTH;
    int64 row = number / packs;
    return {row, int(number - row * packs) * WIDTH};
}

DEVICE numbers nothing() {
    numbers zeros;
    for (int k = 0; k < WIDTH; ++k)
        zeros.v[k] = 0;
    return zeros;
}

DEVICE void add(numbers &sum, scalar factor, const numbers &other) {
    for (int k = 0; k < WIDTH; ++k)
        sum.v[k] += factor * other.v[k];
}

// The first run of a vertex fills its row, and run r > 0 the row M + r - v - 1, where v + 1 is how many runs up to
// there are the first ones.
DEVICE int64 row_of_run(int run, int v, int first, int M) { return run == first ? v : int64(M) + run - v - 1; }

// values (R, C): the sums of weight x over the entries of each run, in order.
KERNEL(256, 4) void splat(const scalar *x, const int *run_first, const int *run_vertex, const int *vertex_first,
                          const int *entry_point, const scalar *entry_weight, int runs, int M, int C,
                          scalar *values) {
    Share share = share_of_thread(C);
    if (share.row >= runs)
        return;
    int run = int(share.row), v = run_vertex[run], last = run_first[run + 1];
    numbers sum = nothing();
    for (int k = run_first[run]; k < last; ++k)
        add(sum, entry_weight[k], load<WIDTH>(x + int64(entry_point[k]) * C + share.c));
    store<WIDTH>(values + row_of_run(run, v, vertex_first[v], M) * C + share.c, sum);
}

// Adds up the runs of each vertex, in order.
KERNEL(256, 4) void add_runs(const int *vertex_first, int M, int C, scalar *values) {
    Share share = share_of_thread(C);
    if (share.row >= M)
        return;
    int v = int(share.row), first = vertex_first[v], last = vertex_first[v + 1];
    if (last - first == 1)
        return;
    numbers one = load<WIDTH>(values + share.row * C + share.c);
    double sum[WIDTH];
    for (int k = 0; k < WIDTH; ++k)
        sum[k] = one.v[k];
    for (int run = first + 1; run < last; ++run) {
        one = load<WIDTH>(values + row_of_run(run, v, first, M) * C + share.c);
        for (int k = 0; k < WIDTH; ++k)
            sum[k] += one.v[k];
    }
    for (int k = 0; k < WIDTH; ++k)
        one.v[k] = scalar(sum[k]);
    store<WIDTH>(values + share.row * C + share.c, one);
}

// out = values + 1/2 (those one step back + those one step ahead). neighbours (M, 2) of one axis begin at `axis` * M.
KERNEL(256, 4) void blur(const scalar *values, const int *neighbours, int axis, int M, int C, scalar *out) {
    Share share = share_of_thread(C);
    if (share.row >= M)
        return;
    const int *pair = neighbours + 2 * (int64(axis) * M + share.row);
    numbers sum = nothing();
    for (int side = 0; side < 2; ++side)
        if (pair[side] >= 0)
            add(sum, 1, load<WIDTH>(values + int64(pair[side]) * C + share.c));
    numbers result = load<WIDTH>(values + share.row * C + share.c);
    add(result, scalar(0.5), sum);
    store<WIDTH>(out + share.row * C + share.c, result);
}

// y = alpha * sum over the corners of weight * (the corner's values)
KERNEL(256, 4) void slice(const scalar *values, const int *vertex, const scalar *weight, int points, int corners, int C,
                          scalar alpha, scalar *y) {
    Share share = share_of_thread(C);
    if (share.row >= points)
        return;
    numbers sum = nothing();
    for (int q = 0; q < corners; ++q) {
        int64 corner = share.row * corners + q;
        add(sum, alpha * weight[corner], load<WIDTH>(values + int64(vertex[corner]) * C + share.c));
    }
    store<WIDTH>(y + share.row * C + share.c, sum);
}
