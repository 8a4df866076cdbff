// relu and leaky_relu: see relu.py. One thread, four elements.

KERNEL(256, 4) void relu_forward(const scalar *x, real slope, scalar *y, int64 n) {
    int64 i = 4 * thread_number();
    quad values = load_quad(x + i, n - i);
    for (int k = 0; k < 4; ++k) {
        real v = values.v[k];
        if (v <= 0)  // NaN is not
            values.v[k] = slope > 0 ? slope * v : 0;  // not 0 * x: that is NaN for minus infinity
    }
    store_quad(y + i, values, n - i);
}

KERNEL(256, 4) void relu_backward(const scalar *dy, const scalar *y, real slope, scalar *dx, int64 n) {
    int64 i = 4 * thread_number();
    quad gradients = load_quad(dy + i, n - i);
    quad results = load_quad(y + i, n - i);
    for (int k = 0; k < 4; ++k)
        if (!(results.v[k] > 0))
            gradients.v[k] = gradients.v[k] * slope;
    store_quad(dx + i, gradients, n - i);
}
