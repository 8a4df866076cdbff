// sigmoid and tanh: see sigmoid.py. One thread, four elements.

KERNEL(256, 4) void sigmoid_forward(const scalar *x, scalar *y, int64 n) {
    int64 i = 4 * thread_number();
    quad values = load_quad(x + i, n - i);
    for (int k = 0; k < 4; ++k) {
        real v = values.v[k], e = exp(-fabs(v));
        values.v[k] = (v >= 0 ? 1 : e) / (1 + e);
    }
    store_quad(y + i, values, n - i);
}

KERNEL(256, 4) void tanh_forward(const scalar *x, scalar *y, int64 n) {
    int64 i = 4 * thread_number();
    quad values = load_quad(x + i, n - i);
    for (int k = 0; k < 4; ++k)
        values.v[k] = tanh(real(values.v[k]));
    store_quad(y + i, values, n - i);
}

KERNEL(256, 4) void sigmoid_backward(const scalar *dy, const scalar *y, real low, scalar *dx, int64 n) {
    int64 i = 4 * thread_number();
    quad gradients = load_quad(dy + i, n - i);
    quad results = load_quad(y + i, n - i);
    for (int k = 0; k < 4; ++k) {
        real result = results.v[k];
        gradients.v[k] = gradients.v[k] * ((result - low) * (1 - result));
    }
    store_quad(dx + i, gradients, n - i);
}
