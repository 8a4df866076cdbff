// The first rungs of the ladder: see conv2d_cuda.py. All calculate a convolution with an odd kernel of `taps` x
// `taps`, stride 1 and padding taps / 2, as a matrix product:
//
//     y[m, o] = sum over k of patch(m, k) * w[k, o]       m: pixel (n, p, q)        k: (r, s, c), c fastest
//
// x: images height width channels, w: taps taps channels out_channels, y: images height width out_channels.

// The element of the patch matrix that is never stored; 0 beyond its ends, and where a tap lies outside of the
// image.
DEVICE scalar patch(const scalar *x, int images, int height, int width, int channels, int taps, int m, int k) {
    int n = m / (height * width), p = m / width % height, q = m % width;
    int r = k / (taps * channels), s = k / channels % taps, c = k % channels;
    int h = p + r - taps / 2, v = q + s - taps / 2;
    if (n >= images || r >= taps || h < 0 || h >= height || v < 0 || v >= width)
        return 0;
    return x[((int64(n) * height + h) * width + v) * channels + c];
}

// 1. A thread for each number of the result. Neighbouring threads have neighbouring pixels.
KERNEL(256, 4) void naive(const scalar *x, const scalar *w, scalar *y, int images, int height, int width,
                          int channels, int out_channels, int taps) {
    int pixels = images * height * width, length = taps * taps * channels;
    int m = thread_number() % pixels, o = thread_number() / pixels;
    if (o >= out_channels)
        return;
    scalar sum = 0;
    for (int k = 0; k < length; ++k)
        sum += patch(x, images, height, width, channels, taps, m, k) * w[int64(k) * out_channels + o];
    y[int64(m) * out_channels + o] = sum;
}

// 2. The same, but neighbouring threads have neighbouring channels of the result.
KERNEL(256, 4) void coalesced(const scalar *x, const scalar *w, scalar *y, int images, int height, int width,
                              int channels, int out_channels, int taps) {
    int pixels = images * height * width, length = taps * taps * channels;
    int m = thread_number() / out_channels, o = thread_number() % out_channels;
    if (m >= pixels)
        return;
    scalar sum = 0;
    for (int k = 0; k < length; ++k)
        sum += patch(x, images, height, width, channels, taps, m, k) * w[int64(k) * out_channels + o];
    y[int64(m) * out_channels + o] = sum;
}

// 3. A block makes 16 x 16 numbers. It copies 16 columns of the patches and 16 rows of the weights to shared
// memory, one number of each by each thread, and every one of them is used 16 times.
KERNEL(256, 4) void shared_tiles(const scalar *x, const scalar *w, scalar *y, int images, int height, int width,
                                 int channels, int out_channels, int taps) {
    SHARED scalar patches[16][16], weights[16][16];
    int length = taps * taps * channels, row = threadIdx.x / 16, column = threadIdx.x % 16;
    int m = blockIdx.x * 16 + row, o = blockIdx.y * 16 + column;
    scalar sum = 0;
    for (int start = 0; start < length; start += 16) {
        int k = start + row;
        patches[row][column] = patch(x, images, height, width, channels, taps, m, start + column);
        weights[row][column] = k < length && o < out_channels ? w[int64(k) * out_channels + o] : scalar(0);
        SYNC();
        for (int i = 0; i < 16; ++i)
            sum += patches[row][i] * weights[i][column];
        SYNC();
    }
    if (m < images * height * width && o < out_channels)
        y[int64(m) * out_channels + o] = sum;
}

// 4. A block makes 64 x 64 numbers, a thread 4 x 4 of them: rows `row` + 16 i, columns `column` + 16 j. Of 8
// numbers that it reads from shared memory it makes 16 products, where it made one of 2 before.
KERNEL(256, 2) void register_tiles(const scalar *x, const scalar *w, scalar *y, int images, int height, int width,
                                   int channels, int out_channels, int taps) {
    SHARED scalar patches[64][17], weights[16][64];  // 17: threads below each other meet different banks
    int length = taps * taps * channels, row = threadIdx.x / 16, column = threadIdx.x % 16;
    int first_m = blockIdx.x * 64, first_o = blockIdx.y * 64;
    scalar sums[4][4] = {};
    for (int start = 0; start < length; start += 16) {
        for (int i = 0; i < 4; ++i) {
            int m = first_m + row + 16 * i;
            patches[row + 16 * i][column] = patch(x, images, height, width, channels, taps, m, start + column);
            int k = start + threadIdx.x / 64 + 4 * i, o = first_o + threadIdx.x % 64;
            bool inside = k < length && o < out_channels;
            weights[k - start][threadIdx.x % 64] = inside ? w[int64(k) * out_channels + o] : scalar(0);
        }
        SYNC();
        for (int k = 0; k < 16; ++k) {
            scalar left[4], right[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                left[i] = patches[row + 16 * i][k];
                right[i] = weights[k][column + 16 * i];
            }
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    sums[i][j] += left[i] * right[j];
        }
        SYNC();
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            int m = first_m + row + 16 * i, o = first_o + column + 16 * j;
            if (m < images * height * width && o < out_channels)
                y[int64(m) * out_channels + o] = sums[i][j];
        }
}
