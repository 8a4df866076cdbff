// The exact Gaussian filter: see exact.py. A block makes LABELS columns of the result for as many points as it has
// threads, one point for each. All points pass by in tiles of shared memory, and every thread adds what each gives to
// its own point: sums over a tile in `scalar`, over the tiles in double.

constexpr int THREADS = 128, TILE = 32, LABELS = 8;

KERNEL(128, 4) void exact(const scalar *features, const scalar *x, int points, int d, int L, bool include_self,
                          scalar *y) {
    DYNAMIC_SHARED(scalar, memory);
    scalar *own = memory + threadIdx.x;         // (d, THREADS): the features of the thread's point
    scalar *others = memory + d * THREADS;      // (TILE, d): those of the points that pass by
    scalar *columns = others + d * TILE;        // (TILE, LABELS): what they give
    int i = blockIdx.x * THREADS + threadIdx.x, label = blockIdx.y * LABELS;
    for (int k = 0; k < d; ++k)
        own[k * THREADS] = i < points ? features[int64(i) * d + k] : 0;
    double total[LABELS] = {};
    for (int begin = 0; begin < points; begin += TILE) {
        int count = min(TILE, points - begin);
        SYNC();
        for (int k = threadIdx.x; k < count * d; k += THREADS)
            others[k] = features[int64(begin) * d + k];
        for (int k = threadIdx.x; k < count * LABELS; k += THREADS) {
            int l = label + k % LABELS;
            columns[k] = l < L ? x[int64(begin + k / LABELS) * L + l] : 0;
        }
        SYNC();
        scalar sum[LABELS] = {};
        for (int j = 0; j < count; ++j) {
            scalar distance = 0;
            for (int k = 0; k < d; ++k) {
                scalar difference = own[k * THREADS] - others[j * d + k];
                distance += difference * difference;
            }
            scalar weight = begin + j == i && !include_self ? scalar(0) : exp(scalar(-0.5) * distance);
            for (int l = 0; l < LABELS; ++l)
                sum[l] += weight * columns[j * LABELS + l];
        }
        for (int l = 0; l < LABELS; ++l)
            total[l] += sum[l];
    }
    for (int l = 0; l < LABELS; ++l)
        if (i < points && label + l < L)
            y[int64(i) * L + label + l] = scalar(total[l]);
}
