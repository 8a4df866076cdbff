// The encoding layer: see encoding.py. Residuals x - d are taken where they are needed, and summed as they are: without
// the matrix products of the CPU's version nothing cancels.
//
// A block has tiles of the arrays in shared memory, of 32 in each direction. 32 of its threads stand side by side along
// one axis of the result, and each makes SPAN results along the other one, 8 apart.

#define TILE 32
#define SPAN 4
#define ROWS (TILE / SPAN)  // of threads

struct Thread {
    int side, row;
};

DEVICE Thread thread() { return {int(threadIdx.x) % TILE, int(threadIdx.x) / TILE}; }

// squares[n,i,k] = sum over c of r^2, and worths[n,i,k] = sum over c of dy[n,c,k] r, for r = x[n,i,c] - d[k,c]; the
// latter only if dy is given. Threads stand along k. A tile of channels is summed as scalars, the tiles as doubles.
KERNEL(256, 2) void encoding_products(const scalar *x, const scalar *d, const scalar *dy, int M, int C, int K,
                                      scalar *squares, scalar *worths) {
    SHARED scalar pixels[TILE][TILE], codewords[TILE][TILE + 1], slopes[TILE][TILE];
    Thread t = thread();
    int first = blockIdx.x * TILE, first_k = blockIdx.y * TILE, k = first_k + t.side;
    int64 n = blockIdx.z;
    double square[SPAN] = {}, worth[SPAN] = {};
    for (int start = 0; start < C; start += TILE) {
        for (int r = t.row; r < TILE; r += ROWS) {
            int c = start + t.side;
            pixels[r][t.side] = first + r < M && c < C ? x[(n * M + first + r) * C + c] : 0;
            codewords[r][t.side] = first_k + r < K && c < C ? d[int64(first_k + r) * C + c] : 0;
            slopes[r][t.side] = dy && start + r < C && k < K ? dy[(n * C + start + r) * K + k] : 0;
        }
        SYNC();
        scalar of_squares[SPAN] = {}, of_worths[SPAN] = {};
        for (int c = 0; c < TILE; ++c)
            for (int j = 0; j < SPAN; ++j) {
                scalar residual = pixels[t.row + j * ROWS][c] - codewords[t.side][c];
                of_squares[j] += residual * residual;
                of_worths[j] += slopes[c][t.side] * residual;
            }
        for (int j = 0; j < SPAN; ++j) {
            square[j] += of_squares[j];
            worth[j] += of_worths[j];
        }
        SYNC();
    }
    for (int j = 0; j < SPAN; ++j) {
        int i = first + t.row + j * ROWS;
        if (i < M && k < K) {
            squares[(n * M + i) * K + k] = scalar(square[j]);
            if (dy)
                worths[(n * M + i) * K + k] = scalar(worth[j]);
        }
    }
}

// Over a chunk of the pixels i, the sum of  weights[n,i,k] r + shares[n,i,k] dy[n,c,k],  the latter if they are given.
// partial: (N, chunks, C, K). Threads stand along k; blockIdx.y counts tiles of channels for each tile of codewords.
KERNEL(256, 2) void encoding_sums(const scalar *weights, const scalar *x, const scalar *d, const scalar *shares,
                                  const scalar *dy, int M, int C, int K, scalar *partial) {
    SHARED scalar pixels[TILE][TILE], of_residual[TILE][TILE], of_slope[TILE][TILE];
    Thread t = thread();
    int tiles = (C + TILE - 1) / TILE;
    int first_c = blockIdx.y % tiles * TILE, k = blockIdx.y / tiles * TILE + t.side;
    int64 n = blockIdx.z, chunk = blockIdx.x, chunks = gridDim.x;
    int last = int((chunk + 1) * M / chunks);
    scalar codeword[SPAN], slope[SPAN];
    double total[SPAN] = {};
    for (int j = 0; j < SPAN; ++j) {
        int c = first_c + t.row + j * ROWS;
        bool inside = c < C && k < K;
        codeword[j] = inside ? d[int64(k) * C + c] : 0;
        slope[j] = inside && dy ? dy[(n * C + c) * K + k] : 0;
    }
    for (int start = int(chunk * M / chunks); start < last; start += TILE) {
        for (int r = t.row; r < TILE; r += ROWS) {
            int c = first_c + t.side;
            int64 i = n * M + start + r;
            bool inside = start + r < last;
            pixels[r][t.side] = inside && c < C ? x[i * C + c] : 0;
            of_residual[r][t.side] = inside && k < K ? weights[i * K + k] : 0;
            of_slope[r][t.side] = inside && k < K && shares ? shares[i * K + k] : 0;
        }
        SYNC();
        scalar sum[SPAN] = {};
        for (int i = 0; i < TILE; ++i)
            for (int j = 0; j < SPAN; ++j) {
                scalar residual = pixels[i][t.row + j * ROWS] - codeword[j];
                sum[j] += of_residual[i][t.side] * residual + of_slope[i][t.side] * slope[j];
            }
        for (int j = 0; j < SPAN; ++j)
            total[j] += sum[j];
        SYNC();
    }
    for (int j = 0; j < SPAN; ++j) {
        int c = first_c + t.row + j * ROWS;
        if (c < C && k < K)
            partial[((n * chunks + chunk) * C + c) * K + k] = scalar(total[j]);
    }
}

// dx[n,i,c] = sum over k of  shares[n,i,k] dy[n,c,k] + pull[n,i,k] r.  Threads stand along c.
KERNEL(256, 2) void encoding_input_gradient(const scalar *shares, const scalar *pull, const scalar *x, const scalar *d,
                                            const scalar *dy, int M, int C, int K, scalar *dx) {
    const int DEPTH = 16;  // codewords at a time: there are four tiles
    SHARED scalar of_slope[TILE][DEPTH], of_residual[TILE][DEPTH], codewords[DEPTH][TILE], slopes[TILE][DEPTH + 1];
    Thread t = thread();
    int first = blockIdx.x * TILE, first_c = blockIdx.y * TILE, c = first_c + t.side;
    int64 n = blockIdx.z;
    scalar pixel[SPAN], sum[SPAN] = {};
    for (int j = 0; j < SPAN; ++j) {
        int i = first + t.row + j * ROWS;
        pixel[j] = i < M && c < C ? x[(n * M + i) * C + c] : 0;
    }
    for (int start = 0; start < K; start += DEPTH) {
        for (int at = threadIdx.x; at < TILE * DEPTH; at += 256) {
            int r = at / DEPTH, depth = at % DEPTH, k = start + depth;
            bool inside = first + r < M && k < K;
            of_slope[r][depth] = inside ? shares[(n * M + first + r) * K + k] : 0;
            of_residual[r][depth] = inside ? pull[(n * M + first + r) * K + k] : 0;
            slopes[r][depth] = first_c + r < C && k < K ? dy[(n * C + first_c + r) * K + k] : 0;
        }
        for (int depth = t.row; depth < DEPTH; depth += ROWS)
            codewords[depth][t.side] = start + depth < K && c < C ? d[int64(start + depth) * C + c] : 0;
        SYNC();
        for (int depth = 0; depth < DEPTH; ++depth)
            for (int j = 0; j < SPAN; ++j) {
                int r = t.row + j * ROWS;
                sum[j] += of_slope[r][depth] * slopes[t.side][depth];
                sum[j] += of_residual[r][depth] * (pixel[j] - codewords[depth][t.side]);
            }
        SYNC();
    }
    for (int j = 0; j < SPAN; ++j) {
        int i = first + t.row + j * ROWS;
        if (i < M && c < C)
            dx[(n * M + i) * C + c] = sum[j];
    }
}
