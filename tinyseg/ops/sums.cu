// Sums over the middle axis of (L, M, C): see sums.py.

// A run of `width` lanes, a power of 2, sums a row of M elements; C is 1.
KERNEL(256, 4) void sum_rows(const scalar *x, int64 rows, int length, int width, double *sums) {
    int64 row = int64(blockIdx.x) * (blockDim.x / width) + threadIdx.x / width;
    const scalar *from = x + row * length;
    double total = 0;
    if (row < rows)
        for (int m = threadIdx.x % width; m < length; m += width)
            total += from[m];
    total = lanes_sum(total, width);
    if (row < rows && threadIdx.x % width == 0)
        sums[row] = total;
}

// The block (chunk, tile of channels, l) sums a chunk of the M rows. `width` threads stand side by side, one for
// each channel; the others begin some rows further down. partial: (L, chunks, C).
KERNEL(256, 4) void sum_chunks(const scalar *x, int64 M, int C, int width, double *partial) {
    SHARED double scratch[256];
    int side = threadIdx.x % width, row = threadIdx.x / width, rows = blockDim.x / width;
    int chunk = blockIdx.x, chunks = gridDim.x, c = blockIdx.y * width + side;
    int64 l = blockIdx.z, last = (chunk + 1) * M / chunks;
    double total = 0;
    if (c < C)
        for (int64 m = chunk * M / chunks + row; m < last; m += rows)
            total += x[(l * M + m) * C + c];
    scratch[threadIdx.x] = total;
    SYNC();
    if (row == 0 && c < C) {
        for (int other = 1; other < rows; ++other)
            total += scratch[other * width + side];
        partial[(l * chunks + chunk) * C + c] = total;
    }
}

// The sum of all chunks, times a factor. A run of `width` lanes makes one of the n sums.
KERNEL(256, 4) void sum_partial(const double *partial, int64 n, int C, int chunks, int width, double factor,
                                scalar *sums) {
    int64 i = int64(blockIdx.x) * (blockDim.x / width) + threadIdx.x / width;
    const double *from = partial + i / C * chunks * C + i % C;
    double total = 0;
    if (i < n)
        for (int chunk = threadIdx.x % width; chunk < chunks; chunk += width)
            total += from[int64(chunk) * C];
    total = lanes_sum(total, width);
    if (i < n && threadIdx.x % width == 0)
        sums[i] = scalar(total * factor);
}
