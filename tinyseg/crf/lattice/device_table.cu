// The vertices of the lattice in use, by sorting: see device_table.py. A block works on a tile of TILE neighbouring
// entries, a thread on EACH of them, in their order. Where many blocks or threads must know how many come before
// them, they count, the counts are added up, and they go over their entries once more: nobody waits for anybody.

constexpr int THREADS = 256, EACH = 16, TILE = THREADS * EACH;
constexpr int VALUES = 64;         // of a digit
constexpr int RUN = 128;           // entries of one run at most
typedef unsigned short uint16;

// The sum of the values of the warp's lanes up to this one.
DEVICE int sum_of_lanes_up_to(int value) {
    int lane = threadIdx.x % 32;
    for (int reach = 1; reach < 32; reach *= 2) {
        int other = shuffle(value, lane < reach ? lane : lane - reach);
        value += lane < reach ? 0 : other;
    }
    return value;
}

// The sum of the values of all threads before this one, and the sum of all in *total. scratch: one for each warp.
DEVICE int sum_before(int value, int *scratch, int *total) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, sum = sum_of_lanes_up_to(value);
    if (lane == 31)
        scratch[warp] = sum;
    SYNC();
    int before = sum - value;
    *total = 0;
    for (int w = 0; w < blockDim.x / 32; ++w) {
        before += w < warp ? scratch[w] : 0;
        *total += scratch[w];
    }
    SYNC();
    return before;
}

// ------------------------------------------------------------------------------------------------- sorting by a digit

DEVICE int digit_of(int64 code, int64 lowest, int shift) { return int((code - lowest) >> shift) & (VALUES - 1); }

// counts (VALUES, blocks): how often each value of the digit occurs in the tile.
KERNEL(256, 3) void count_digits(const int64 *codes, int n, int64 lowest, int shift, int *counts) {
    SHARED uint8 count[VALUES * THREADS];  // of each value by each thread
    for (int value = 0; value < VALUES; ++value)
        count[value * THREADS + threadIdx.x] = 0;
    int first = blockIdx.x * TILE + threadIdx.x * EACH;
    for (int k = first; k < min(first + EACH, n); ++k)
        ++count[digit_of(codes[k], lowest, shift) * THREADS + threadIdx.x];
    SYNC();
    int lane = threadIdx.x % 32;
    for (int value = threadIdx.x / 32; value < VALUES; value += THREADS / 32) {
        int sum = 0;
        for (int t = lane; t < THREADS; t += 32)
            sum += count[value * THREADS + t];
        sum = lanes_sum(sum, 32);
        if (lane == 0)
            counts[value * gridDim.x + blockIdx.x] = sum;
    }
}

// counts[i] becomes the sum of those before it; counts[n] is the sum of all. One block.
KERNEL(1024, 1) void add_up(int *counts, int n) {
    SHARED int scratch[32];
    int carried = 0, total;
    for (int begin = 0; begin < n; begin += blockDim.x * EACH) {
        int first = begin + threadIdx.x * EACH, last = min(first + EACH, n), sum = 0;
        for (int i = first; i < last; ++i)
            sum += counts[i];
        int before = carried + sum_before(sum, scratch, &total);
        for (int i = first; i < last; ++i) {
            int count = counts[i];
            counts[i] = before;
            before += count;
        }
        carried += total;
    }
    if (threadIdx.x == 0)
        counts[n] = carried;
}

// To the place that follows from the counts, in the order in which they come. Without entries, they are 0, 1, ...
KERNEL(256, 1) void move_entries(const int64 *codes, const int *entries, int n, int64 lowest, int shift,
                                 const int *counts, int64 *sorted_codes, int *sorted_entries) {
    SHARED uint16 place[VALUES * THREADS];  // among the tile's entries of one value
    for (int value = 0; value < VALUES; ++value)
        place[value * THREADS + threadIdx.x] = 0;
    int first = blockIdx.x * TILE + threadIdx.x * EACH, last = min(first + EACH, n);
    for (int k = first; k < last; ++k)
        ++place[digit_of(codes[k], lowest, shift) * THREADS + threadIdx.x];
    SYNC();
    for (int value = threadIdx.x / 32; value < VALUES; value += THREADS / 32) {
        uint16 *of_lane = place + value * THREADS + threadIdx.x % 32 * (THREADS / 32);
        int sum = 0;
        for (int k = 0; k < THREADS / 32; ++k)
            sum += of_lane[k];
        int before = sum_of_lanes_up_to(sum) - sum;
        for (int k = 0; k < THREADS / 32; ++k) {
            int count = of_lane[k];
            of_lane[k] = uint16(before);
            before += count;
        }
    }
    SYNC();
    for (int k = first; k < last; ++k) {
        int64 code = codes[k];
        int value = digit_of(code, lowest, shift);
        int to = counts[value * gridDim.x + blockIdx.x] + place[value * THREADS + threadIdx.x]++;
        sorted_codes[to] = code;
        sorted_entries[to] = entries ? entries[k] : k;
    }
}

// -------------------------------------------------------------------------------------------------------- numbering

DEVICE bool begins_vertex(const int64 *codes, int k) { return k == 0 || codes[k] != codes[k - 1]; }

DEVICE bool begins_run(const int64 *codes, int k) { return k % RUN == 0 || begins_vertex(codes, k); }

// counts (2, blocks): how many vertices, and how many runs, begin in the tile.
KERNEL(256, 4) void count_begins(const int64 *codes, int n, int *counts) {
    SHARED int scratch[THREADS / 32];
    int vertices = 0, runs = 0;
    int first = blockIdx.x * TILE + threadIdx.x * EACH;
    for (int k = first; k < min(first + EACH, n); ++k) {
        vertices += begins_vertex(codes, k);
        runs += begins_run(codes, k);
    }
    vertices = block_sum(vertices, scratch);
    runs = block_sum(runs, scratch);
    if (threadIdx.x == 0) {
        counts[blockIdx.x] = vertices;
        counts[gridDim.x + blockIdx.x] = runs;
    }
}

// counts: added up. The runs' come after the vertices', of which there are counts[blocks].
KERNEL(256, 2) void number_vertices(const int64 *codes, const int *entries, const scalar *weights, int n, int corners,
                                    const int *counts, int64 *unique, int *vertex, int *run_first, int *run_vertex,
                                    int *vertex_first, int *entry_point, scalar *entry_weight) {
    SHARED int scratch[THREADS / 32];
    int first = blockIdx.x * TILE + threadIdx.x * EACH, last = min(first + EACH, n), vertices = 0, runs = 0, total;
    for (int k = first; k < last; ++k) {
        vertices += begins_vertex(codes, k);
        runs += begins_run(codes, k);
    }
    int v = counts[blockIdx.x] + sum_before(vertices, scratch, &total) - 1;
    int run = counts[gridDim.x + blockIdx.x] - counts[gridDim.x] + sum_before(runs, scratch, &total) - 1;
    for (int k = first; k < last; ++k) {
        if (begins_run(codes, k)) {
            ++run;
            if (begins_vertex(codes, k)) {
                ++v;
                unique[v] = codes[k];
                vertex_first[v] = run;
            }
            run_first[run] = k;
            run_vertex[run] = v;
        }
        int entry = entries[k];
        vertex[entry] = v;
        entry_point[k] = entry / corners;
        entry_weight[k] = weights[entry];
        if (k == n - 1) {
            run_first[run + 1] = n;
            vertex_first[v + 1] = run + 1;
        }
    }
}

// ------------------------------------------------------------------------------------------------------- neighbours

// The number of the vertex with this code, or -1.
DEVICE int find(const int64 *unique, int vertices, int64 code) {
    int low = 0, high = vertices;  // it is none before low, and none from high on
    while (low < high) {
        int middle = low + (high - low) / 2;
        if (unique[middle] < code)
            low = middle + 1;
        else
            high = middle;
    }
    return low < vertices && unique[low] == code ? low : -1;
}

// neighbours (axes, M, 2): one step back and one step ahead. A thread for each vertex, blockIdx.y is the axis.
KERNEL(256, 4) void find_neighbours(const int64 *unique, const int64 *steps, int vertices, int *neighbours) {
    int v = int(thread_number());
    if (v >= vertices)
        return;
    int64 step = steps[blockIdx.y], at = 2 * (int64(blockIdx.y) * vertices + v);
    neighbours[at] = find(unique, vertices, unique[v] - step);
    neighbours[at + 1] = find(unique, vertices, unique[v] + step);
}
