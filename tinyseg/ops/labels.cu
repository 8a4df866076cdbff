// What the losses share on a GPU: labels made fit for use, and the end of a sum of losses. See labels.py.

// Labels that can be indices, and the weight of each pixel. Where the label is to be ignored both are 0. A label that
// is no class, or a negative weight, becomes a weight of NaN: so does the loss, and nobody had to wait for the GPU.
KERNEL(256, 4) void prepare_labels(const int64 *labels, const scalar *pixel_weights, const scalar *class_weights,
                                   int64 pixels, int classes, bool has_ignored, int64 ignored, int64 *indices,
                                   scalar *weights) {
    int64 i = thread_number();
    if (i >= pixels)
        return;
    int64 label = labels[i];
    scalar weight = pixel_weights ? pixel_weights[i] : 1;
    if (has_ignored && label == ignored) {
        label = 0;
        weight = 0;
    } else if (label < 0 || label >= classes) {
        label = 0;
        weight = NOT_A_NUMBER;
    } else if (class_weights) {
        weight *= class_weights[label];
    }
    indices[i] = label;
    weights[i] = weight < 0 ? NOT_A_NUMBER : weight;
}

// partial: (2, blocks), what blocks of threads made of their losses and of their weights. The loss is the sum of the
// losses, divided by that of the weights if `mean`; it is 0 if nothing counts. One block.
KERNEL(256, 1) void finish_loss(const double *partial, int blocks, bool mean, scalar *loss, double *scale) {
    SHARED double scratch[8];
    double losses = 0, weights = 0;
    for (int b = threadIdx.x; b < blocks; b += 256) {
        losses += partial[b];
        weights += partial[blocks + b];
    }
    losses = block_sum(losses, scratch);
    weights = block_sum(weights, scratch);
    double factor = !mean ? 1 : weights == 0 ? 0 : 1 / weights;
    if (threadIdx.x == 0) {
        *loss = scalar(losses * factor);
        *scale = factor;
    }
}
