// add and mul: see arithmetic.py.

// Arrays of one shape: one thread, four elements.
KERNEL(256, 4) void combine(const scalar *a, const scalar *b, bool multiply, scalar *y, int64 n) {
    int64 i = 4 * thread_number();
    quad left = load_quad(a + i, n - i), right = load_quad(b + i, n - i);
    for (int k = 0; k < 4; ++k)
        left.v[k] = multiply ? left.v[k] * right.v[k] : left.v[k] + right.v[k];
    store_quad(y + i, left, n - i);
}

// Stretched arrays: y has up to four axes, of lengths (any), n1, n2, n3. Going one step along axis k moves a by ak
// and b by bk elements, by 0 where they are stretched.
KERNEL(256, 4) void combine_stretched(const scalar *a, const scalar *b, bool multiply, scalar *y, int64 n, int64 n1,
                                      int64 n2, int64 n3, int64 a0, int64 a1, int64 a2, int64 a3, int64 b0, int64 b1,
                                      int64 b2, int64 b3) {
    int64 i = thread_number();
    if (i >= n)
        return;
    int64 rest = i / n3, i3 = i - rest * n3;
    int64 i01 = rest / n2, i2 = rest - i01 * n2;
    int64 i0 = i01 / n1, i1 = i01 - i0 * n1;
    real left = a[i0 * a0 + i1 * a1 + i2 * a2 + i3 * a3];
    real right = b[i0 * b0 + i1 * b1 + i2 * b2 + i3 * b3];
    y[i] = multiply ? left * right : left + right;
}
