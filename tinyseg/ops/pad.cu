// The border that pad puts around images when its value is not 0: see pad.py. One thread, one element.

KERNEL(256, 4) void fill_border(scalar *y, int64 n, int H, int W, int P, int Q, int C, int top, int left,
                                real value) {
    int64 i = thread_number();
    if (i >= n)
        return;
    int64 pixel = i / C;
    int p = pixel / Q % P - top, q = pixel % Q - left;
    if (p < 0 || p >= H || q < 0 || q >= W)
        y[i] = value;
}
