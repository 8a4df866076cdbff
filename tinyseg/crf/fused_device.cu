// Mean field on lattices: see fused_device.py.

// to (rows, stride) from `begin` on = from (rows, count) + shift. -1 stands for nothing and stays; so are rows that
// `from` does not have. blockIdx.y is the row.
KERNEL(256, 4) void join_numbers(const int *from, int rows, int64 count, int shift, int *to, int64 begin,
                                 int64 stride) {
    int64 k = thread_number();
    if (k >= count)
        return;
    int row = blockIdx.y, number = row < rows ? from[row * count + k] : -1;
    to[row * stride + begin + k] = number < 0 ? -1 : number + shift;
}

// The entries of one lattice among those of all: which point, and weight * (what the point's numbers are scaled by).
KERNEL(256, 4) void join_entries(const int *entry_point, const scalar *entry_weight, const scalar *scale, int count,
                                 int64 begin, int *points, scalar *gifts) {
    int64 k = thread_number();
    if (k >= count)
        return;
    int point = entry_point[k];
    points[begin + k] = point;
    gifts[begin + k] = scale ? scale[point] * entry_weight[k] : entry_weight[k];
}

// The corners of one lattice among those of all, from `column` on: vertices, and factor * scale * weight.
KERNEL(256, 4) void join_corners(const int *vertex, const scalar *weight, const scalar *scale, scalar factor, int shift,
                                 int64 entries, int corners, int column, int columns, int *joined, scalar *shares) {
    int64 k = thread_number();
    if (k >= entries)
        return;
    int64 point = k / corners, to = point * columns + column + (k - point * corners);
    joined[to] = vertex[k] + shift;
    shares[to] = factor * weight[k] * (scale ? scale[point] : 1);
}

// q = softmax(-unary + sum over the corners of share * values). A run of `width` lanes, a power of 2, shares the labels
// of a pixel, four for each. Values are rows of C numbers, C a multiple of 4; q has `stride` in each row, that or L.
KERNEL(256, 4) void update(const scalar *unary, const scalar *values, const int *vertex, const scalar *share,
                           int points, int corners, int L, int C, int width, int stride, scalar *q) {
    int64 i = int64(blockIdx.x) * (blockDim.x / width) + threadIdx.x / width;
    int label = i < points ? int(threadIdx.x) % width * 4 : C;  // the first of the lane
    quad x;
    for (int k = 0; k < 4; ++k)
        x.v[k] = label + k < L ? -unary[i * L + label + k] : -INF;
    if (values && label < C)
        for (int corner = 0; corner < corners; ++corner) {
            int64 at = i * corners + corner;
            quad given = load<4>(values + int64(vertex[at]) * C + label);
            for (int k = 0; k < 4; ++k)
                x.v[k] += share[at] * given.v[k];
        }
    scalar top = lanes_max(larger(larger(x.v[0], x.v[1]), larger(x.v[2], x.v[3])), width), total = 0;
    for (int k = 0; k < 4; ++k) {
        x.v[k] = label + k < L ? exp(x.v[k] - top) : 0;
        total += x.v[k];
    }
    total = lanes_sum(total, width);
    for (int k = 0; k < 4; ++k)
        x.v[k] /= total;
    if (label < C && stride == C)
        store<4>(q + i * C + label, x);
    else
        for (int k = 0; k < 4; ++k)
            if (label + k < L)
                q[i * stride + label + k] = x.v[k];
}
