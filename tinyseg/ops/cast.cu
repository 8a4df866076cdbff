// Between float and bfloat16: see cast.py. One thread, four elements.

KERNEL(256, 4) void round_off(const real *x, scalar *y, int64 n) {
    int64 i = 4 * thread_number();
    for (int k = 0; k < 4; ++k)
        if (i + k < n)
            y[i + k] = x[i + k];
}

KERNEL(256, 4) void widen(const scalar *x, real *y, int64 n) {
    int64 i = 4 * thread_number();
    quad values = load_quad(x + i, n - i);
    for (int k = 0; k < 4; ++k)
        if (i + k < n)
            y[i + k] = values.v[k];
}
