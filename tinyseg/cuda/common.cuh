// What every kernel file may use: this text is put before it. Nothing is included: the compiler of a GPU machine
// may have no headers at all.
//
// The first part is the thin layer between kernels and the machine. It has a second implementation, in tests/cuda,
// which lets a C++ compiler run the very same kernels on the host. So kernels use these names, and never CUDA's
// own for barriers, shuffles and assembly.

typedef unsigned char uint8;
typedef unsigned int uint32;
typedef long long int64;
typedef unsigned long long uint64;

#ifndef TINYSEG_HOST

#define KERNEL(threads, blocks) extern "C" __global__ __launch_bounds__(threads, blocks)
#define DEVICE __device__ __forceinline__

// SHARED scalar tile[64];      memory that the threads of a block share
// DYNAMIC_SHARED(scalar, tile);      the same, its size given at the launch (more than 48 KB is possible)
#define SHARED __shared__ __align__(16)
#define DYNAMIC_SHARED(type, name)                     \
    extern __shared__ __align__(16) uint8 dynamic_shared_bytes[]; \
    type *name = reinterpret_cast<type *>(dynamic_shared_bytes)

// Every thread of the block waits until all have come here.
#define SYNC() __syncthreads()

#define CHECK_ALIGNED(pointer, bytes)

// Every lane of the warp hands in a value, and gets that of the lane `lane ^ mask`, or of `source`.
template <typename T> DEVICE T shuffle_xor(T value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
template <typename T> DEVICE T shuffle(T value, int source) { return __shfl_sync(0xffffffffu, value, source); }

#define INF __int_as_float(0x7f800000)
#define NOT_A_NUMBER __int_as_float(0x7fffffff)

DEVICE uint32 high_word(uint32 a, uint32 b) { return __umulhi(a, b); }  // of the 64-bit product
DEVICE int count_ones(uint32 x) { return __popc(x); }  // among its bits

// a * b, rounded before anything is added to it. Where a sum follows, the compiler would do both with one
// rounding.
DEVICE float rounded_product(float a, float b) { return __fmul_rn(a, b); }
DEVICE double rounded_product(double a, double b) { return __dmul_rn(a, b); }

#if __CUDA_ARCH__ >= 800

// Copies 4, 8 or 16 bytes from global to shared memory while the thread goes on; zeros where `valid` is false, and
// then `from` is not read. They come in groups: close_copies() ends one, wait_copies<n>() waits until all but the
// last n have arrived. SYNC() after it: the others' copies must have arrived, too.
template <int bytes> DEVICE void copy_async(void *to, const void *from, bool valid) {
    uint32 address = static_cast<uint32>(__cvta_generic_to_shared(to));
    int size = valid ? bytes : 0;
    if (bytes == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address), "l"(from), "r"(size) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;\n" ::"r"(address), "l"(from), "r"(size), "n"(bytes) : "memory");
}
DEVICE void close_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
template <int pending> DEVICE void wait_copies() { asm volatile("cp.async.wait_group %0;\n" ::"n"(pending) : "memory"); }

// The nearest number with the 10 bits of mantissa that tensor cores multiply (TF32).
DEVICE uint32 to_tf32(float x) {
    uint32 bits;
    asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(bits) : "f"(x));
    return bits;
}

// c += a b on the tensor cores, all lanes of a warp together: a is 16 x 8, b 8 x 8, c 16 x 8. With g = lane / 4
// and t = lane % 4, a lane holds
//     a[0] = a(g, t)      a[1] = a(g + 8, t)      a[2] = a(g, t + 4)      a[3] = a(g + 8, t + 4)
//     b[0] = b(t, g)      b[1] = b(t + 4, g)
//     c[0] = c(g, 2t)     c[1] = c(g, 2t + 1)     c[2] = c(g + 8, 2t)     c[3] = c(g + 8, 2t + 1)
DEVICE void mma_tf32(float *c, const uint32 *a, const uint32 *b) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same with numbers of bfloat16: a is 16 x 16, b 16 x 8, c 16 x 8. Each word of a and b has two neighbours
// along the sum,
//     a[0] = a(g, 2t)     a[1] = a(g + 8, 2t)     a[2] = a(g, 2t + 8)     a[3] = a(g + 8, 2t + 8)
//     b[0] = b(2t, g)     b[1] = b(2t + 8, g)
DEVICE void mma_bfloat16(float *c, const uint32 *a, const uint32 *b) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four matrices of 8 x 8 numbers of 2 bytes from shared memory, all lanes of a warp together. Lane i hands in the
// address of row i % 8 of matrix i / 8, a multiple of 16. It gets a word of each matrix: the elements (g, 2t) and
// (g, 2t + 1), or of turned matrices (2t, g) and (2t + 1, g).
template <bool turned> DEVICE void load_matrices(uint32 *words, const void *row) {
    uint32 address = static_cast<uint32>(__cvta_generic_to_shared(row));
    if (turned)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                     : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                     : "r"(address)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                     : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                     : "r"(address)
                     : "memory");
}

#endif
#endif  // TINYSEG_HOST

// ------------------------------------------------------------------------------------------------------ numbers

// A float without the last 16 bits of its mantissa: its range, and three digits. It is for storing. Expressions
// turn it into a float by themselves, and round to the nearest when they store; sums must be of type `real`.
struct bfloat16 {
    unsigned short bits;

    bfloat16() = default;

    DEVICE bfloat16(float x) {
        uint32 all = *reinterpret_cast<uint32 *>(&x), last = all >> 16 & 1;
        bits = x != x ? all >> 16 | 0x40 : (all + 0x7fff + last) >> 16;  // halves go to the even neighbour
    }

    DEVICE operator float() const {
        uint32 all = uint32(bits) << 16;
        return *reinterpret_cast<float *>(&all);
    }
};

#ifndef SCALAR
#define SCALAR float
#endif
typedef SCALAR scalar;  // what arrays are made of: float, double or bfloat16

// What is calculated with, and what parameters are made of (weights, scales, statistics): float for bfloat16.
template <typename T> struct Arithmetic {
    typedef T type;
};
template <> struct Arithmetic<bfloat16> {
    typedef float type;
};
typedef Arithmetic<scalar>::type real;

// The number of this thread among all threads of the launch.
DEVICE int64 thread_number() { return int64(blockIdx.x) * blockDim.x + threadIdx.x; }

// One thread for each channel of each pixel, or for each pack of channels: `width` of the block's threads stand
// side by side along the channels, see tile() in __init__.py. Blocks reach over the ends of both.
struct Spot {
    uint32 pixel;
    int channel;
};

DEVICE Spot spot_of_thread(int width) {
    int shift = count_ones(width - 1);  // width is a power of 2: the compiler, which cannot know, would divide
    return {blockIdx.x * (blockDim.x >> shift) + (threadIdx.x >> shift),
            int((blockIdx.y << shift) + (threadIdx.x & (width - 1)))};
}

// ----------------------------------------------------------------------- several scalars in one memory operation

template <int N, typename T = scalar>
struct alignas(N * sizeof(T) % 16 == 0 ? 16 : N * sizeof(T) == 8 ? 8 : N * sizeof(T) == 4 ? 4 : sizeof(T)) pack {
    T v[N];
};

template <int N, typename T> DEVICE pack<N, T> load(const T *from) {
    CHECK_ALIGNED(from, alignof(pack<N, T>));
    return *reinterpret_cast<const pack<N, T> *>(from);
}

// `values` may be of another type: they are rounded to that of the array.
template <int N, typename To, typename From = To> DEVICE void store(To *to, const pack<N, From> &values) {
    CHECK_ALIGNED(to, alignof(pack<N, To>));
    pack<N, To> rounded;
#pragma unroll
    for (int k = 0; k < N; ++k)
        rounded.v[k] = values.v[k];
    *reinterpret_cast<pack<N, To> *>(to) = rounded;
}

// Element-wise kernels give four elements to a thread. The last thread may have fewer: `left` counts from the
// thread's first element to the end of the array. What is beyond the end is 0 when loaded, and not stored.
typedef pack<4> quad;

DEVICE quad load_quad(const scalar *from, int64 left) {
    if (left >= 4)
        return load<4>(from);
    quad values = {};
    for (int k = 0; k < 3; ++k)
        if (k < left)
            values.v[k] = from[k];
    return values;
}

DEVICE void store_quad(scalar *to, const quad &values, int64 left) {
    if (left >= 4) {
        store<4>(to, values);
        return;
    }
    for (int k = 0; k < 3; ++k)
        if (k < left)
            to[k] = values.v[k];
}

// ---------------------------------------------------------------- sums and maxima, always in the same order

// Over a run of `width` lanes, a power of 2; every lane of the run gets it.
template <typename T> DEVICE T lanes_sum(T value, int width) {
    for (int mask = width / 2; mask > 0; mask /= 2)
        value += shuffle_xor(value, mask);
    return value;
}

// The larger of two numbers, or NaN if one of them is NaN.
template <typename T> DEVICE T larger(T a, T b) { return a != a || a > b ? a : b; }

template <typename T> DEVICE T lanes_max(T value, int width) {
    for (int mask = width / 2; mask > 0; mask /= 2)
        value = larger(value, shuffle_xor(value, mask));
    return value;
}

// Over all threads of the block; every thread gets it. `scratch` is shared memory for one value of each warp, and
// may be used again right away.
template <typename T> DEVICE T block_sum(T value, T *scratch) {
    value = lanes_sum(value, 32);
    if (threadIdx.x % 32 == 0)
        scratch[threadIdx.x / 32] = value;
    SYNC();
    T total = 0;
    for (int warp = 0; warp < blockDim.x / 32; ++warp)
        total += scratch[warp];
    SYNC();
    return total;
}
