// group_norm: see group_norm.py. The passes over pixels are in channel_sums.cu; here is what is done for each group of
// each image. A warp looks after one group, its lanes share the `size` = C / G channels.

DEVICE int64 group_of_warp() { return thread_number() / 32; }

// From the moments of channels, (N, C), those of groups, (N, G): the variance within channels and between them. Then
// the mean and gamma / sqrt(var + eps) for each channel.
KERNEL(256, 4) void group_norm_statistics(const double *channel_mean, const double *channel_var, const scalar *gamma,
                                          double eps, int64 groups, int size, int C, scalar *mean, scalar *var,
                                          scalar *centre, scalar *scale) {
    int64 g = group_of_warp(), first = g * size;
    bool inside = g < groups;
    double total = 0, within = 0;
    for (int c = threadIdx.x % 32; inside && c < size; c += 32)
        total += channel_mean[first + c];
    double of_group = lanes_sum(total, 32) / size;
    for (int c = threadIdx.x % 32; inside && c < size; c += 32) {
        double between = channel_mean[first + c] - of_group;
        within += channel_var[first + c] + between * between;
    }
    within = lanes_sum(within, 32) / size;
    if (inside && threadIdx.x % 32 == 0) {
        mean[g] = scalar(of_group);
        var[g] = scalar(within);
    }
    double inverse = 1 / sqrt(scalar(within) + eps);
    for (int c = threadIdx.x % 32; inside && c < size; c += 32) {
        centre[first + c] = scalar(of_group);
        scale[first + c] = scalar(gamma[(first + c) % C] * inverse);
    }
}

// a, b, d of  dx = a * dy + b * (x - mean) + d  for each channel. total and product are the sums of dy and of
// dy * (x - mean) over the M pixels, (N, C).
KERNEL(256, 4) void group_norm_coefficients(const double *total, const double *product, const scalar *var,
                                            const scalar *gamma, double eps, int64 M, int64 groups, int size, int C,
                                            scalar *a, scalar *b, scalar *d) {
    int64 g = group_of_warp(), first = g * size;
    bool inside = g < groups;
    double inverse = inside ? 1 / sqrt(var[g] + eps) : 0, mean_g = 0, mean_gu = 0;
    for (int c = threadIdx.x % 32; inside && c < size; c += 32) {
        mean_g += gamma[(first + c) % C] * total[first + c];
        mean_gu += gamma[(first + c) % C] * inverse * product[first + c];
    }
    mean_g = lanes_sum(mean_g, 32) / (double(M) * size);
    mean_gu = lanes_sum(mean_gu, 32) / (double(M) * size);
    for (int c = threadIdx.x % 32; inside && c < size; c += 32) {
        a[first + c] = scalar(inverse * gamma[(first + c) % C]);
        b[first + c] = scalar(-inverse * inverse * mean_gu);
        d[first + c] = scalar(-inverse * mean_g);
    }
}

// The gradients of gamma and beta: sums over the images.
KERNEL(256, 4) void group_norm_parameters(const double *total, const double *product, const scalar *var, double eps,
                                          int N, int size, int C, scalar *dgamma, scalar *dbeta) {
    int64 c = thread_number();
    if (c >= C)
        return;
    double of_gamma = 0, of_beta = 0;
    for (int n = 0; n < N; ++n) {
        int64 i = int64(n) * C + c;
        of_gamma += product[i] / sqrt(var[i / size] + eps);
        of_beta += total[i];
    }
    dgamma[c] = scalar(of_gamma);
    dbeta[c] = scalar(of_beta);
}

// Each group's value for each of its channels: (N, G) to (N, C).
KERNEL(256, 4) void to_channels(const scalar *of_groups, int64 n, int size, scalar *of_channels) {
    int64 i = thread_number();
    if (i < n)
        of_channels[i] = of_groups[i / size];
}
