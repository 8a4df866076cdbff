// Energies from what a network says: see dense.py. One thread, four elements.

// sign * x, and `impossible` where that is infinite.
KERNEL(256, 4) void finite_energies(const scalar *x, scalar sign, scalar impossible, scalar *y, int64 n) {
    int64 i = 4 * thread_number();
    quad values = load_quad(x + i, n - i);
    for (int k = 0; k < 4; ++k) {
        scalar energy = sign * values.v[k];
        values.v[k] = energy == INF ? impossible : energy;
    }
    store_quad(y + i, values, n - i);
}
