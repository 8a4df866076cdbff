// The cell of each point, see simplex.py: one thread, one point. What a thread keeps for each coordinate lies in shared
// memory, number j at [j * blockDim.x], since registers have no index. Products are rounded before they are added, as
// on the CPU: a point on the border of two cells then comes into the same one.

KERNEL(128, 4) void find_simplices(const scalar *features, const scalar *scale, const int64 *steps, int points, int d,
                                   scalar inverse, int64 *codes, scalar *weights) {
    DYNAMIC_SHARED(scalar, numbers);
    int step = blockDim.x, size = (d + 1) * step;
    scalar *elevated = numbers + threadIdx.x, *v = elevated + size, *rank = v + size, *axis_of_rank = rank + size;
    scalar *gaps = axis_of_rank + size;  // d + 2 of them
    int64 i = thread_number();
    if (i >= points)
        return;
    scalar corners = d + 1;

    scalar total = 0;
    for (int j = d; j > 0; --j) {
        scalar c = rounded_product(features[i * d + j - 1], scale[j - 1]);
        elevated[j * step] = total - rounded_product(scalar(j), c);
        total += c;
    }
    elevated[0] = total;

    int shift = 0;
    for (int j = 0; j <= d; ++j) {
        v[j * step] = rint(rounded_product(elevated[j * step], inverse));
        rank[j * step] = 0;
        shift += int(v[j * step]);
    }
    for (int j = 0; j <= d; ++j) {
        scalar rest = elevated[j * step] - rounded_product(v[j * step], corners);
        for (int k = j + 1; k <= d; ++k) {
            bool smaller = rest < elevated[k * step] - rounded_product(v[k * step], corners);
            rank[(smaller ? j : k) * step] += 1;
        }
    }
    for (int j = 0; j <= d; ++j) {
        int r = int(rank[j * step]) + shift, move = r < 0 ? 1 : r > d ? -1 : 0;
        rank[j * step] = r + move * (d + 1);
        v[j * step] += move;
        axis_of_rank[int(rank[j * step]) * step] = j;
    }

    for (int q = 0; q <= d + 1; ++q)
        gaps[q * step] = 0;
    for (int j = 0; j <= d; ++j) {
        int r = int(rank[j * step]);
        scalar t = rounded_product(elevated[j * step] - rounded_product(v[j * step], corners), inverse);
        gaps[(d - r) * step] += t;
        gaps[(d + 1 - r) * step] -= t;
    }
    weights[i * (d + 1)] = gaps[0] + (1 + gaps[(d + 1) * step]);
    for (int q = 1; q <= d; ++q)
        weights[i * (d + 1) + q] = gaps[q * step];

    int64 code = 0;
    for (int k = 0; k < d; ++k)
        code += int64(v[d * step] - v[k * step]) * steps[k];
    codes[i * (d + 1)] = code;
    for (int q = 0; q < d; ++q) {
        code += steps[int(axis_of_rank[(d - q) * step])];
        codes[i * (d + 1) + q + 1] = code;
    }
}
