// A GPU played by the host: what a kernel file needs to be compiled by an ordinary C++ compiler, and to be run.
//
// A block's threads are fibers, each with a stack of its own. One runs until it comes to a barrier or hands in a
// value to its warp; then the next one runs. The order in which they take turns can be chosen, which shows missing
// barriers: a result that hangs on the order is wrong. What is found besides:
//
//   * shared memory is filled with NaN before each block, so reading what was never written shows;
//   * a barrier that some threads do not come to, or that threads come to in different lines, is an error;
//   * so is a shuffle or tensor-core product without all 32 lanes of the warp;
//   * asynchronous copies are done when they are waited for, and not before;
//   * loads of several numbers at once check their alignment, dynamic shared memory has guard bands.

#define TINYSEG_HOST
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

static struct {
    unsigned x, y, z;
} threadIdx, blockIdx, blockDim, gridDim;

extern "C" __attribute__((weak, visibility("hidden"))) char __start_tinyseg_shared[], __stop_tinyseg_shared[];

namespace host {

constexpr int WARP = 32, STACK = 1 << 18, GUARD = 256, MAX_THREADS = 1024, MAX_COPIES = 1024;
constexpr unsigned char POISON = 0xff;  // all bits set are NaN in float and in double

enum State { READY, AT_BARRIER, AT_WARP, DONE };

struct Copy {
    void *to;
    const void *from;
    int bytes;
    bool valid;
    int group;
};

struct Fiber {
    ucontext_t first;
    jmp_buf rest;
    bool started;
    State state;
    int line;       // of the barrier or of the exchange that it waits at
    int exchanges;  // with its warp, so far
    int copy_count, groups;
    Copy copies[MAX_COPIES];  // the last, since most kernels touch none of them
};

// What the lanes of a warp hand in, twice: while some read the last exchange, others are already at the next.
struct Mailbox {
    unsigned long long words[2][WARP][6];
};

static Fiber *fibers;
static char *stacks;
static Mailbox mailboxes[MAX_THREADS / WARP];
static char *dynamic_shared;
static jmp_buf scheduler;
static int me, thread_count;
static void (*body)(void *);
static void *body_data;
static char message[1024];

[[noreturn]] static void fail(const char *format, ...) {
    int used = snprintf(message, sizeof message, "block (%u, %u, %u), thread %d: ", blockIdx.x, blockIdx.y, blockIdx.z, me);
    va_list rest;
    va_start(rest, format);
    vsnprintf(message + used, sizeof message - used, format, rest);
    va_end(rest);
    _longjmp(scheduler, 2);
}

static void pause(State state, int line) {
    fibers[me].state = state;
    fibers[me].line = line;
    if (!_setjmp(fibers[me].rest))
        _longjmp(scheduler, 1);
}

static void live() {
    for (;;) {
        body(body_data);
        if (fibers[me].copy_count)
            fail("it ends with asynchronous copies that it never waited for");
        pause(DONE, 0);
    }
}

static void resume(int thread) {
    me = thread;
    threadIdx = {unsigned(thread), 0, 0};
    Fiber &fiber = fibers[thread];
    if (fiber.started)
        _longjmp(fiber.rest, 1);
    fiber.started = true;
    getcontext(&fiber.first);
    fiber.first.uc_stack.ss_sp = stacks + size_t(thread) * STACK;
    fiber.first.uc_stack.ss_size = STACK;
    fiber.first.uc_link = nullptr;
    makecontext(&fiber.first, live, 0);
    setcontext(&fiber.first);
}

// Let those go on that wait for something that has happened. Returns whether there were any.
static bool release() {
    bool released = false;
    for (int start = 0; start < thread_count; start += WARP) {
        bool all = true;
        for (int t = start; t < start + WARP; ++t)
            all = all && fibers[t].state == AT_WARP && fibers[t].line == fibers[start].line;
        for (int t = start; all && t < start + WARP; ++t)
            fibers[t].state = READY;
        released = released || all;
    }
    bool all = true;
    for (int t = 0; t < thread_count; ++t)
        all = all && fibers[t].state == AT_BARRIER && fibers[t].line == fibers[0].line;
    for (int t = 0; all && t < thread_count; ++t)
        fibers[t].state = READY;
    return released || all;
}

static void explain_standstill() {
    int used = snprintf(message, sizeof message, "block (%u, %u, %u) stands still:", blockIdx.x, blockIdx.y, blockIdx.z);
    const char *what[] = {"ready", "at the barrier in line", "at the warp's exchange in line", "finished"};
    for (int t = 0, first = 0; t < thread_count; ++t) {
        bool last = t + 1 == thread_count || fibers[t + 1].state != fibers[t].state || fibers[t + 1].line != fibers[t].line;
        if (!last || used > int(sizeof message) - 100)
            continue;
        used += snprintf(message + used, sizeof message - used, " threads %d to %d %s", first, t, what[fibers[t].state]);
        if (fibers[t].line)
            used += snprintf(message + used, sizeof message - used, " %d", fibers[t].line);
        used += snprintf(message + used, sizeof message - used, ";");
        first = t + 1;
    }
    strcat(message, " all threads of a block must meet at the same barrier, and all lanes of a warp at the same exchange");
}

// orders: 0 forward, 1 backward, more: shuffled, differently for each number.
static void arrange(int *order, int count, int kind, unsigned seed) {
    for (int i = 0; i < count; ++i)
        order[i] = kind == 1 ? count - 1 - i : i;
    if (kind < 2)
        return;
    unsigned state = seed * 2654435761u + unsigned(kind);
    for (int i = count - 1; i > 0; --i) {
        state = state * 1664525u + 1013904223u;
        int j = int((state >> 8) % unsigned(i + 1));
        int other = order[i];
        order[i] = order[j];
        order[j] = other;
    }
}

// Returns nullptr, or what went wrong. launch: blocks along x, y, z; threads; bytes of shared memory; order.
static const char *run(const int *launch, void (*function)(void *), void *data) {
    static int order[MAX_THREADS];
    if (!fibers) {
        // Memory that nobody has touched costs nothing: each of some hundred kernel files has its own of these.
        fibers = static_cast<Fiber *>(calloc(MAX_THREADS, sizeof(Fiber)));
        stacks = static_cast<char *>(malloc(size_t(MAX_THREADS) * STACK));
    }
    body = function;
    body_data = data;
    gridDim = {unsigned(launch[0]), unsigned(launch[1]), unsigned(launch[2])};
    thread_count = launch[3];
    blockDim = {unsigned(thread_count), 1, 1};
    int shared = launch[4], kind = launch[5];
    dynamic_shared = static_cast<char *>(aligned_alloc(16, (shared + 2 * GUARD + 15) / 16 * 16));
    long long blocks = (long long)gridDim.x * gridDim.y * gridDim.z;
    const char *problem = nullptr;
    for (volatile long long b = 0; b < blocks && !problem; b = b + 1) {
        long long block = kind == 0 ? b : kind == 1 ? blocks - 1 - b : (b * 7919 + kind) % blocks;
        if (kind >= 2 && blocks % 7919 == 0)
            block = b;
        blockIdx = {unsigned(block % gridDim.x), unsigned(block / gridDim.x % gridDim.y), unsigned(block / gridDim.x / gridDim.y)};
        memset(dynamic_shared, POISON, shared + 2 * GUARD);
        if (__start_tinyseg_shared)
            memset(__start_tinyseg_shared, POISON, __stop_tinyseg_shared - __start_tinyseg_shared);
        memset(mailboxes, POISON, sizeof mailboxes);
        for (int t = 0; t < thread_count; ++t) {
            fibers[t].state = READY;
            fibers[t].exchanges = fibers[t].copy_count = fibers[t].groups = 0;
        }
        volatile unsigned turn = 0;
        do {
            turn = turn + 1;
            arrange(order, thread_count, kind, unsigned(block) * 31 + turn);
            for (volatile int i = 0; i < thread_count; i = i + 1) {
                int back = _setjmp(scheduler);
                if (back == 2)
                    problem = message;
                if (back == 0 && fibers[order[i]].state == READY)
                    resume(order[i]);
                if (problem)
                    break;
            }
        } while (!problem && release());
        for (int t = 0; t < thread_count && !problem; ++t)
            if (fibers[t].state != DONE) {
                explain_standstill();
                problem = message;
            }
        for (int i = 0; i < GUARD && !problem; ++i)
            if ((unsigned char)dynamic_shared[i] != POISON || (unsigned char)dynamic_shared[GUARD + shared + i] != POISON) {
                snprintf(message, sizeof message, "block (%u, %u, %u) wrote outside its %d bytes of shared memory", blockIdx.x, blockIdx.y, blockIdx.z, shared);
                problem = message;
            }
    }
    if (problem)  // fibers are left in the middle of the kernel: the next launch takes new ones
        for (int t = 0; t < MAX_THREADS; ++t)
            fibers[t].started = false;
    free(dynamic_shared);
    return problem;
}

template <typename T> struct Words {
    unsigned long long words[(sizeof(T) + 7) / 8];
};

// Hand in a value, wait for the whole warp, and get the address of what all lanes handed in.
template <typename T> static Mailbox *exchange(const T &value, int line, int *box) {
    static_assert(sizeof(T) <= sizeof(mailboxes[0].words[0][0]), "too much for a mailbox");
    Mailbox *mailbox = &mailboxes[me / WARP];
    *box = fibers[me].exchanges++ % 2;
    memcpy(mailbox->words[*box][me % WARP], &value, sizeof value);
    pause(AT_WARP, line);
    return mailbox;
}

template <typename T> static T from_lane(const T &value, int lane, int line) {
    if (lane < 0 || lane >= WARP)
        fail("a shuffle asks for lane %d, in line %d", lane, line);
    int box;
    Mailbox *mailbox = exchange(value, line, &box);
    T result;
    memcpy(&result, mailbox->words[box][lane], sizeof result);
    return result;
}

template <typename T> static void check_aligned(const T *pointer, int bytes, int line) {
    if (reinterpret_cast<unsigned long long>(pointer) % bytes)
        fail("an address is not a multiple of %d, in line %d", bytes, line);
}

static void finish_copies(int pending) {
    Fiber &fiber = fibers[me];
    int left = 0;
    for (int i = 0; i < fiber.copy_count; ++i) {
        Copy &copy = fiber.copies[i];
        if (copy.group >= fiber.groups - pending)
            fiber.copies[left++] = copy;
        else if (copy.valid)
            memcpy(copy.to, copy.from, copy.bytes);
        else
            memset(copy.to, 0, copy.bytes);
    }
    fiber.copy_count = left;
}

// A number of a word: its only one, of TF32, or one of two, of bfloat16.
template <int count> static float number_in_word(unsigned word, int which) {
    unsigned bits = count == 1 ? word & 0xffffe000u  // what the tensor core does with the bits that it has no room for
                    : which    ? word & 0xffff0000u
                               : word << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

struct Fragments {
    unsigned a[4], b[2];
};

// c += a b, where a word of a and b has `each` neighbours along the sum.
template <int each> static void multiply_fragments(float *c, const unsigned *a, const unsigned *b, int line) {
    int box, g = me % WARP / 4, t = me % 4;
    Mailbox *mailbox = exchange(Fragments{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}}, line, &box);
    for (int i = 0; i < 4; ++i) {
        int row = g + i / 2 * 8, column = 2 * t + i % 2;
        float sum = c[i];
        for (int k = 0; k < 8 * each; ++k) {
            int word = k / each;
            const Fragments *of_a = reinterpret_cast<Fragments *>(mailbox->words[box][row % 8 * 4 + word % 4]);
            const Fragments *of_b = reinterpret_cast<Fragments *>(mailbox->words[box][column * 4 + word % 4]);
            sum += number_in_word<each>(of_a->a[row / 8 + word / 4 * 2], k % each) *
                   number_in_word<each>(of_b->b[word / 4], k % each);
        }
        c[i] = sum;
    }
}

}  // namespace host

#define __restrict__
#define KERNEL(threads, blocks) static
#define DEVICE inline
#define SHARED static __attribute__((section("tinyseg_shared"), aligned(16)))
#define DYNAMIC_SHARED(type, name) type *name = reinterpret_cast<type *>(host::dynamic_shared + host::GUARD)
#define INF INFINITY
#define NOT_A_NUMBER NAN
#define SYNC() host::pause(host::AT_BARRIER, __LINE__)
#define CHECK_ALIGNED(pointer, bytes) host::check_aligned(pointer, bytes, __LINE__)

template <typename T> static T shuffle_xor(T value, int mask, int line = __builtin_LINE()) {
    return host::from_lane(value, (host::me % host::WARP) ^ mask, line);
}
template <typename T> static T shuffle(T value, int source, int line = __builtin_LINE()) {
    return host::from_lane(value, source, line);
}
static inline unsigned high_word(unsigned a, unsigned b) { return unsigned((unsigned long long)a * b >> 32); }
static inline int count_ones(unsigned x) { return __builtin_popcount(x); }
template <typename T> static T rounded_product(T a, T b) { return a * b; }  // this processor fuses nothing unasked

template <int bytes> static void copy_async(void *to, const void *from, bool valid) {
    host::Fiber &fiber = host::fibers[host::me];
    CHECK_ALIGNED(static_cast<char *>(to), bytes);
    if (valid)
        CHECK_ALIGNED(static_cast<const char *>(from), bytes);
    if (fiber.copy_count == host::MAX_COPIES)
        host::fail("more than %d asynchronous copies wait", host::MAX_COPIES);
    fiber.copies[fiber.copy_count++] = {to, from, bytes, valid, fiber.groups};
}
static inline void close_copies() { ++host::fibers[host::me].groups; }
template <int pending> static void wait_copies() { host::finish_copies(pending); }

static inline unsigned to_tf32(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7f800000u) != 0x7f800000u)
        bits += 0x1000u;  // to the nearest, halves away from zero
    return bits & 0xffffe000u;
}

static inline void mma_tf32(float *c, const unsigned *a, const unsigned *b, int line = __builtin_LINE()) {
    host::multiply_fragments<1>(c, a, b, line);
}

static inline void mma_bfloat16(float *c, const unsigned *a, const unsigned *b, int line = __builtin_LINE()) {
    host::multiply_fragments<2>(c, a, b, line);
}

template <bool turned> static void load_matrices(unsigned *words, const void *row, int line = __builtin_LINE()) {
    using namespace host;
    struct Row {
        unsigned short v[8];
    } mine;
    check_aligned(static_cast<const char *>(row), 16, line);
    memcpy(&mine, row, sizeof mine);
    int box, g = me % WARP / 4, t = me % 4;
    Mailbox *mailbox = exchange(mine, line, &box);
    for (int i = 0; i < 4; ++i) {
        const auto element = [&](int r, int c) {
            return unsigned(reinterpret_cast<Row *>(mailbox->words[box][8 * i + r])->v[c]);
        };
        words[i] = turned ? element(2 * t, g) | element(2 * t + 1, g) << 16
                          : element(g, 2 * t) | element(g, 2 * t + 1) << 16;
    }
}

template <typename T> static T min(T a, T b) { return b < a ? b : a; }
template <typename T> static T max(T a, T b) { return a < b ? b : a; }
template <typename T> static T rsqrt(T x) { return 1 / sqrt(x); }
