// local_response_norm: see local_response_norm.py. One thread, one element; i is its number, c its channel.

KERNEL(256, 4) void response_forward(const scalar *x, int64 n, int C, int before, int after, scalar factor, scalar beta,
                                     scalar k, scalar *y, scalar *s) {
    int64 i = thread_number();
    if (i >= n)
        return;
    int c = int(i % C);
    scalar energy = 0;
    for (int j = -min(before, c); j <= min(after, C - 1 - c); ++j)
        energy += x[i + j] * x[i + j];
    s[i] = k + factor * energy;
    y[i] = x[i] * pow(s[i], -beta);
}

// What each s[i] passes on, and the part of the gradient that goes around s.
KERNEL(256, 4) void response_through(const scalar *dy, const scalar *x, const scalar *s, int64 n, scalar beta,
                                     scalar *around, scalar *through) {
    int64 i = thread_number();
    if (i >= n)
        return;
    around[i] = dy[i] * pow(s[i], -beta);
    through[i] = x[i] * around[i] / s[i];
}

KERNEL(256, 4) void response_backward(const scalar *around, const scalar *through, const scalar *x, int64 n, int C,
                                      int before, int after, scalar factor, scalar *dx) {
    int64 i = thread_number();
    if (i >= n)
        return;
    int c = int(i % C);
    scalar total = 0;
    for (int j = -min(before, c); j <= min(after, C - 1 - c); ++j)
        total += through[i + j];
    dx[i] = around[i] - factor * x[i] * total;
}
