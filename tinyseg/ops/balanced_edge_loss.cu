// The balance of the edges: see balanced_edge_loss.py. The loss itself is that of bce_with_logits.

// Each block counts the edges among every gridDim.x-th run of 256 elements, and the other elements that are not to be
// ignored. partial: (2, blocks).
KERNEL(256, 4) void count_edges(const int64 *edges, int64 n, bool has_ignored, int64 ignored, double *partial) {
    int positive = 0, negative = 0;
    for (int64 i = thread_number(); i < n; i += int64(gridDim.x) * 256) {
        bool counts = !(has_ignored && edges[i] == ignored);
        positive += counts && edges[i] == 1;
        negative += counts && edges[i] == 0;
    }
    store_sums(positive, negative, partial);
}

// counts: (2,), all edges and all others. An element that is neither 0 nor 1 nor to be ignored has the weight NaN: so
// has the loss, and nobody had to wait for the GPU.
KERNEL(256, 4) void weigh_edges(const int64 *edges, const double *counts, int64 n, bool has_ignored, int64 ignored,
                                scalar *targets, scalar *weights) {
    int64 i = thread_number();
    if (i >= n)
        return;
    double positive = counts[0], negative = counts[1], all = max(positive + negative, 1.0);
    int64 edge = edges[i];
    double weight = edge == 1 ? negative : edge == 0 ? positive : NOT_A_NUMBER;
    bool counted = !(has_ignored && edge == ignored);
    targets[i] = counted && edge == 1;
    weights[i] = counted ? scalar(weight / all / all) : 0;
}
