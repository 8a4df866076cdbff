// batch_norm: see batch_norm.py. The passes over pixels are in channel_sums.cu; here is what is done for each channel.

DEVICE double inverse_deviation(double var, double eps) { return 1 / sqrt(var + eps); }

// From the batch's moments: the statistics in the type of x, and gamma / sqrt(var + eps).
KERNEL(256, 4) void batch_norm_of_batch(const double *mean, const double *var, const scalar *gamma, double eps, int C,
                                        scalar *used_mean, scalar *used_var, scalar *scale) {
    int64 c = thread_number();
    if (c >= C)
        return;
    used_mean[c] = scalar(mean[c]);
    used_var[c] = scalar(var[c]);
    scale[c] = scalar(gamma[c] * inverse_deviation(used_var[c], eps));
}

KERNEL(256, 4) void batch_norm_scale(const scalar *var, const scalar *gamma, double eps, int C, scalar *scale) {
    int64 c = thread_number();
    if (c < C)
        scale[c] = scalar(gamma[c] * inverse_deviation(var[c], eps));
}

// The gradients of gamma and beta, and a, b, d of  dx = a * g + b * (x - mean) + d. total and product are the sums of
// g and of g * (x - mean) over the M pixels; with constant statistics they may be missing, and nothing but a is made.
KERNEL(256, 4) void batch_norm_gradients(const double *total, const double *product, const scalar *var,
                                         const scalar *gamma, double eps, int64 M, bool of_batch, int C,
                                         scalar *dgamma, scalar *dbeta, scalar *a, scalar *b, scalar *d) {
    int64 c = thread_number();
    if (c >= C)
        return;
    double inverse = inverse_deviation(var[c], eps), factor = gamma[c] * inverse, mean_g = 0, mean_gn = 0;
    if (total) {
        dbeta[c] = scalar(total[c]);
        dgamma[c] = scalar(product[c] * inverse);
    }
    if (of_batch) {
        mean_g = total[c] / M;
        mean_gn = product[c] * inverse / M;
    }
    a[c] = scalar(factor);
    b[c] = scalar(-factor * inverse * mean_gn);
    d[c] = scalar(-factor * mean_g);
}

// Running averages of a layer: (1 - momentum) * running + momentum * factor * batch.
KERNEL(256, 4) void batch_norm_move(scalar *running, const scalar *batch, scalar momentum, scalar factor, int n) {
    int c = thread_number();
    if (c < n)
        running[c] = (1 - momentum) * running[c] + momentum * (batch[c] * factor);
}
