// The Dice loss: see dice.py.

// Sums over a chunk of the pixels, of w p where the label is c and of w (p + [the label is c]): partial is (chunks, 2,
// C). `width` threads stand side by side, one for each class; the others begin some pixels further down.
KERNEL(256, 4) void dice_chunks(const scalar *p, const int64 *labels, const scalar *weights, int64 pixels, int C,
                                int width, double *partial) {
    SHARED double scratch[2][256];
    int side = threadIdx.x % width, row = threadIdx.x / width, rows = 256 / width;
    int c = blockIdx.y * width + side;
    int64 chunk = blockIdx.x, last = (chunk + 1) * pixels / gridDim.x;
    double intersection = 0, total = 0;
    if (c < C)
        for (int64 i = chunk * pixels / gridDim.x + row; i < last; i += rows) {
            double weight = weights[i];
            if (weight == 0)
                continue;
            double share = weight * p[i * C + c];
            total += share;
            if (labels[i] == c) {
                intersection += share;
                total += weight;
            }
        }
    scratch[0][threadIdx.x] = intersection;
    scratch[1][threadIdx.x] = total;
    SYNC();
    if (row == 0 && c < C) {
        for (int other = 1; other < rows; ++other) {
            intersection += scratch[0][other * width + side];
            total += scratch[1][other * width + side];
        }
        partial[chunk * 2 * C + c] = intersection;
        partial[(chunk * 2 + 1) * C + c] = total;
    }
}

// The loss, and its derivative by p[i,c] in pixels of weight 1: everywhere, and what is added where the label is c.
// One block, whose threads share the classes.
KERNEL(256, 1) void dice_finish(const double *partial, const scalar *class_weights, int chunks, int C, double epsilon,
                                bool mean, scalar *loss, double *everywhere, double *labelled) {
    SHARED double scratch[8];
    double sum = 0;
    for (int c = threadIdx.x; c < C; c += 256)
        sum += class_weights ? class_weights[c] : 1;
    sum = block_sum(sum, scratch);
    double scale = mean && sum != 0 ? 1 / sum : 1, losses = 0;
    for (int c = threadIdx.x; c < C; c += 256) {
        double intersection = 0, total = 0;
        for (int chunk = 0; chunk < chunks; ++chunk) {
            intersection += partial[int64(chunk) * 2 * C + c];
            total += partial[(int64(chunk) * 2 + 1) * C + c];
        }
        double share = scale * (class_weights ? class_weights[c] : 1);
        double numerator = 2 * intersection + epsilon, denominator = total + epsilon;
        losses += share * (1 - numerator / denominator);
        everywhere[c] = share * numerator / (denominator * denominator);
        labelled[c] = -2 * share / denominator;
    }
    losses = block_sum(losses, scratch);
    if (threadIdx.x == 0)
        *loss = scalar(losses);
}

KERNEL(256, 4) void dice_backward(const scalar *dy, const int64 *labels, const scalar *weights,
                                  const double *everywhere, const double *labelled, int pixels, int C, int width,
                                  scalar *dp) {
    Spot spot = spot_of_thread(width);
    int c = spot.channel;
    if (spot.pixel >= pixels || c >= C)
        return;
    double slope = everywhere[c] + (labels[spot.pixel] == c ? labelled[c] : 0);
    dp[int64(spot.pixel) * C + c] = scalar(*dy * slope * weights[spot.pixel]);
}
