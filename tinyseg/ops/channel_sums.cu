// Batch norm and group norm: see channel_sums.py. L sets of M pixels with C channels, an array (L, M, C).
//
// A thread looks after WIDTH neighbouring channels, one pack of them. In kernels that sum, a block takes a chunk of
// the pixels of a set: `width` threads stand side by side, and the others begin some pixels further down. Sums are
// made in float64; those of the chunks are added by another kernel, always in the same order.

typedef pack<WIDTH> channels_of_thread;
typedef pack<WIDTH, real> numbers_of_channels;  // which hold for all pixels of a set

struct Place {
    int c;                   // the thread's first channel
    int64 first, last, step;  // its pixels, counted over all sets
};

DEVICE Place place_in_chunk(int64 M, int width) {
    int side = threadIdx.x % width, row = threadIdx.x / width;
    int64 chunk = blockIdx.x, l = blockIdx.z;
    return {int(blockIdx.y * width + side) * WIDTH, l * M + chunk * M / gridDim.x + row,
            l * M + (chunk + 1) * M / gridDim.x, int64(blockDim.x / width)};
}

// The two sums of each channel over the rows of the block, in order; the first row writes them to (L, chunks, 2, C).
DEVICE void store_sums(const double *one, const double *two, int c, int C, int width, double *partial) {
    SHARED double scratch[256];
    int side = threadIdx.x % width, row = threadIdx.x / width, rows = blockDim.x / width;
    double *to = partial + (int64(blockIdx.z) * gridDim.x + blockIdx.x) * 2 * C;
    for (int k = 0; k < 2 * WIDTH; ++k) {
        scratch[threadIdx.x] = k < WIDTH ? one[k % WIDTH] : two[k % WIDTH];
        SYNC();
        if (row == 0 && c < C) {
            double total = 0;
            for (int other = 0; other < rows; ++other)
                total += scratch[other * width + side];
            to[k / WIDTH * C + c + k % WIDTH] = total;
        }
        SYNC();
    }
}

// Sums of d and d * d, where d = x - (the set's first pixel).
KERNEL(256, 3) void moments_chunks(const scalar *x, int64 M, int C, int width, double *partial) {
    Place place = place_in_chunk(M, width);
    double sum[WIDTH] = {}, square[WIDTH] = {};
    if (place.c < C) {
        channels_of_thread origin = load<WIDTH>(x + blockIdx.z * M * C + place.c);
        for (int64 i = place.first; i < place.last; i += place.step) {
            channels_of_thread values = load<WIDTH>(x + i * C + place.c);
            for (int k = 0; k < WIDTH; ++k) {
                double d = double(values.v[k]) - double(origin.v[k]);
                sum[k] += d;
                square[k] += d * d;
            }
        }
    }
    store_sums(sum, square, place.c, C, width, partial);
}

// Sums of g and g * (x - mean), where g = dy, or with a ReLU (y is given) dy where y > 0 and 0 elsewhere.
KERNEL(256, 3) void gradient_chunks(const scalar *dy, const scalar *x, const scalar *y, const real *mean, int64 M,
                                    int C, int width, double *partial) {
    Place place = place_in_chunk(M, width);
    double sum[WIDTH] = {}, product[WIDTH] = {};
    if (place.c < C) {
        numbers_of_channels centre = load<WIDTH>(mean + int64(blockIdx.z) * C + place.c);
        for (int64 i = place.first; i < place.last; i += place.step) {
            channels_of_thread g = load<WIDTH>(dy + i * C + place.c);
            channels_of_thread values = load<WIDTH>(x + i * C + place.c);
            if (y) {
                channels_of_thread results = load<WIDTH>(y + i * C + place.c);
                for (int k = 0; k < WIDTH; ++k)
                    g.v[k] = results.v[k] > 0 ? g.v[k] : scalar(0);
            }
            for (int k = 0; k < WIDTH; ++k) {
                sum[k] += g.v[k];
                product[k] += double(g.v[k]) * (double(values.v[k]) - double(centre.v[k]));
            }
        }
    }
    store_sums(sum, product, place.c, C, width, partial);
}

// Adds the sums of the chunks, (L, chunks, 2, C), up to one[l, c] and two[l, c]. A warp for each channel.
DEVICE void add_chunks(const double *partial, int64 i, int64 n, int C, int chunks, double *one, double *two) {
    int64 l = i / C, c = i % C;
    *one = *two = 0;
    if (i < n)
        for (int chunk = threadIdx.x % 32; chunk < chunks; chunk += 32) {
            *one += partial[((l * chunks + chunk) * 2) * C + c];
            *two += partial[((l * chunks + chunk) * 2 + 1) * C + c];
        }
    *one = lanes_sum(*one, 32);
    *two = lanes_sum(*two, 32);
}

// Mean and biased variance of each set's channels, (L, C). The shift by the first pixel keeps the difference of the
// squares harmless.
KERNEL(256, 4) void moments(const double *partial, const scalar *x, int64 n, int64 M, int C, int chunks, double *mean,
                            double *var) {
    int64 i = thread_number() / 32;
    double d, dd;
    add_chunks(partial, i, n, C, chunks, &d, &dd);
    if (i < n && threadIdx.x % 32 == 0) {
        d /= M;
        dd = dd / M - d * d;
        mean[i] = x[i / C * M * C + i % C] + d;
        var[i] = dd < 0 ? 0 : dd;
    }
}

KERNEL(256, 4) void gradient_sums(const double *partial, int64 n, int C, int chunks, double *total, double *product) {
    int64 i = thread_number() / 32;
    double one, two;
    add_chunks(partial, i, n, C, chunks, &one, &two);
    if (i < n && threadIdx.x % 32 == 0) {
        total[i] = one;
        product[i] = two;
    }
}

// ---------------------------------------------------------------------------------- element-wise over all pixels

// The pack that a thread looks after: pixel i, channels from c on, in set l. There are `packs` = C / WIDTH a pixel.
struct Pack {
    int64 i, l;
    int c;
};

DEVICE Pack pack_of_thread(int64 M, int packs) {
    int64 number = thread_number(), i = number / packs;
    return {i, i / M, int(number - i * packs) * WIDTH};
}

// y = (x - mean) * scale + beta, then max(y, 0) if `relu`; NaN stays.
KERNEL(256, 4) void normalise(const scalar *x, const real *mean, const real *scale, const real *beta, bool relu,
                              int64 pixels, int64 M, int C, scalar *y) {
    Pack p = pack_of_thread(M, C / WIDTH);
    if (p.i >= pixels)
        return;
    channels_of_thread values = load<WIDTH>(x + p.i * C + p.c);
    numbers_of_channels means = load<WIDTH>(mean + p.l * C + p.c);
    numbers_of_channels scales = load<WIDTH>(scale + p.l * C + p.c);
    numbers_of_channels betas = load<WIDTH>(beta + p.c);
    for (int k = 0; k < WIDTH; ++k) {
        real z = (values.v[k] - means.v[k]) * scales.v[k] + betas.v[k];
        values.v[k] = relu && z <= 0 ? 0 : z;
    }
    store<WIDTH>(y + p.i * C + p.c, values);
}

// dx = a * g + b * (x - mean) + d
KERNEL(256, 4) void input_gradient(const scalar *dy, const scalar *x, const scalar *y, const real *mean,
                                   const real *a, const real *b, const real *d, int64 pixels, int64 M, int C,
                                   scalar *dx) {
    Pack p = pack_of_thread(M, C / WIDTH);
    if (p.i >= pixels)
        return;
    int64 at = p.i * C + p.c, in_set = p.l * C + p.c;
    channels_of_thread g = load<WIDTH>(dy + at), values = load<WIDTH>(x + at);
    numbers_of_channels means = load<WIDTH>(mean + in_set), as = load<WIDTH>(a + in_set);
    numbers_of_channels bs = load<WIDTH>(b + in_set), ds = load<WIDTH>(d + in_set);
    if (y) {
        channels_of_thread results = load<WIDTH>(y + at);
        for (int k = 0; k < WIDTH; ++k)
            g.v[k] = results.v[k] > 0 ? g.v[k] : scalar(0);
    }
    for (int k = 0; k < WIDTH; ++k)
        g.v[k] = as.v[k] * g.v[k] + bs.v[k] * (values.v[k] - means.v[k]) + ds.v[k];
    store<WIDTH>(dx + at, g);
}
