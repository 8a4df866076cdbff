// Binary cross-entropy: see bce_with_logits.py. i is the number of an element, i % C its channel.

// Targets and weights that are 0 where the target is to be ignored. A target outside of 0 .. 1, or a negative weight,
// becomes a weight of NaN: so does the loss. A weight is for `per_weight` elements, 1 or C.
KERNEL(256, 4) void bce_prepare(const scalar *targets, const scalar *given_weights, int64 n, int per_weight,
                                bool has_ignored, scalar ignored, scalar *used_targets, scalar *weights) {
    int64 i = thread_number();
    if (i >= n)
        return;
    scalar target = targets[i], weight = given_weights ? given_weights[i / per_weight] : 1;
    if (has_ignored && target == ignored)
        target = weight = 0;
    else if (!(target >= 0 && target <= 1) || weight < 0)
        weight = NOT_A_NUMBER;
    used_targets[i] = target;
    weights[i] = weight;
}

// Each block takes every gridDim.x-th run of 256 elements. partial: (2, blocks), sums of the losses and the weights.
KERNEL(256, 4) void bce_forward(const scalar *z, const scalar *targets, const scalar *weights, const scalar *positive,
                                int64 n, int C, double *partial) {
    double losses = 0, total_weight = 0;
    for (int64 i = thread_number(); i < n; i += int64(gridDim.x) * 256) {
        if (weights[i] == 0)
            continue;
        double x = z[i], target = targets[i], weight = weights[i];
        double u = log1p(exp(-fabs(x)));
        double yes = (x < 0 ? -x : 0) + u, no = (x > 0 ? x : 0) + u;  // -log s(x), -log(1 - s(x))
        losses += weight * (positive[i % C] * target * yes + (1 - target) * no);
        total_weight += weight;
    }
    store_sums(losses, total_weight, partial);
}

KERNEL(256, 4) void bce_backward(const scalar *dy, const double *scale, const scalar *z, const scalar *targets,
                                 const scalar *weights, const scalar *positive, int64 n, int C, scalar *dz) {
    int64 i = thread_number();
    if (i >= n)
        return;
    scalar x = z[i], e = exp(-fabs(x)), weight = scalar(*dy * *scale * weights[i]);
    scalar yes = (x > 0 ? 1 : e) / (1 + e), no = (x > 0 ? e : 1) / (1 + e);  // s(x), s(-x)
    scalar slope = (1 - targets[i]) * yes - positive[i % C] * targets[i] * no;
    dz[i] = weights[i] != 0 ? weight * slope : 0;
}
