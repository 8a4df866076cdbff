// concat and slice: see concat.py. All of it is copying.

// Rows of `length` packs, from every `from_step`-th pack of one array to every `to_step`-th of the other. One thread,
// one pack of WIDTH elements.
KERNEL(256, 4) void copy_rows(const scalar *from, int64 from_first, int64 from_step, scalar *to, int64 to_first,
                              int64 to_step, int64 rows, int64 length) {
    int64 number = thread_number(), row = number / length, i = number - row * length;
    if (row < rows)
        store<WIDTH>(to + (to_first + row * to_step + i) * WIDTH,
                     load<WIDTH>(from + (from_first + row * from_step + i) * WIDTH));
}

// dx is dy, with zeros around it. dx has the lengths (any), n1, n2, n3, and dy is its part from `first` on of lengths
// (any), m1, m2, m3. One thread, one element of dx.
KERNEL(256, 4) void surround(const scalar *dy, int64 n, int64 n1, int64 n2, int64 n3, int64 m0, int64 m1, int64 m2,
                             int64 m3, int64 first0, int64 first1, int64 first2, int64 first3, scalar *dx) {
    int64 number = thread_number();
    if (number >= n)
        return;
    int64 rest = number / n3, i3 = number - rest * n3 - first3;
    int64 i01 = rest / n2, i2 = rest - i01 * n2 - first2;
    int64 i0 = i01 / n1, i1 = i01 - i0 * n1 - first1;
    i0 -= first0;
    bool inside = 0 <= i0 && i0 < m0 && 0 <= i1 && i1 < m1 && 0 <= i2 && i2 < m2 && 0 <= i3 && i3 < m3;
    dx[number] = inside ? dy[((i0 * m1 + i1) * m2 + i2) * m3 + i3] : scalar(0);
}
