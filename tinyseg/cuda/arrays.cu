// Copies of arrays in C order, or in another type: see copies.py. ELEMENT is the type of the array that is read.

// to[i] = element number i, in C order, of an array that begins at this address. axes[0] has the sizes of its axes,
// axes[1] the bytes from one element to the next along each of them. One thread, one element.
KERNEL(256, 4) void gather(uint64 address, const int64 *axes, int count, ELEMENT *to, int64 n) {
    int64 i = thread_number();
    if (i >= n)
        return;
    int64 left = i, offset = 0;
    for (int axis = count - 1; axis > 0; --axis) {
        offset += left % axes[axis] * axes[count + axis];
        left /= axes[axis];
    }
    offset += left * axes[count];
    to[i] = *reinterpret_cast<const ELEMENT *>(address + offset);
}

// One thread, four elements.
template <typename To> DEVICE void convert(const ELEMENT *from, To *to, int64 n) {
    int64 first = 4 * thread_number();
    if (first + 4 <= n) {
        store<4>(to + first, load<4>(from + first));
        return;
    }
    for (int64 i = first; i < n; ++i)
        to[i] = from[i];
}

KERNEL(256, 4) void to_float32(const ELEMENT *from, float *to, int64 n) { convert(from, to, n); }

KERNEL(256, 4) void to_float64(const ELEMENT *from, double *to, int64 n) { convert(from, to, n); }

KERNEL(256, 4) void to_bfloat16(const ELEMENT *from, bfloat16 *to, int64 n) { convert(from, to, n); }

KERNEL(256, 4) void to_uint8(const ELEMENT *from, uint8 *to, int64 n) { convert(from, to, n); }

KERNEL(256, 4) void to_int32(const ELEMENT *from, int *to, int64 n) { convert(from, to, n); }

KERNEL(256, 4) void to_int64(const ELEMENT *from, int64 *to, int64 n) { convert(from, to, n); }
