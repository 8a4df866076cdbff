// What a map of labels says about its image as a whole: see label_maps.py.

// How often each class occurs in a chunk of the pixels of image blockIdx.z. `width` threads stand side by side, one for
// each class; the others begin some pixels further down. partial: (N, chunks, classes).
KERNEL(256, 4) void count_labels(const int64 *labels, int pixels, int classes, int width, bool has_ignored,
                                 int64 ignored, double *partial) {
    SHARED int scratch[256];
    int side = threadIdx.x % width, row = threadIdx.x / width, rows = 256 / width;
    int c = blockIdx.y * width + side, count = 0;
    int64 n = blockIdx.z, chunk = blockIdx.x, chunks = gridDim.x;
    int last = int((chunk + 1) * pixels / chunks);
    if (c < classes && !(has_ignored && c == ignored))
        for (int i = int(chunk * pixels / chunks) + row; i < last; i += rows)
            count += labels[n * pixels + i] == c;
    scratch[threadIdx.x] = count;
    SYNC();
    if (row == 0 && c < classes) {
        for (int other = 1; other < rows; ++other)
            count += scratch[other * width + side];
        partial[(n * chunks + chunk) * classes + c] = count;
    }
}

KERNEL(256, 4) void are_present(const double *counts, int n, bool *present) {
    int64 i = thread_number();
    if (i < n)
        present[i] = counts[i] > 0;
}

// What a pixel of each class weighs in each image; counts and weights are (N, classes). One thread, one of the weights.
KERNEL(256, 4) void weigh_classes(const double *counts, int N, int classes, double *weights) {
    int64 i = thread_number(), n = i / classes;
    if (n >= N)
        return;
    double known = 0, total = 0;
    for (int c = 0; c < classes; ++c)
        known += counts[n * classes + c];
    known = max(known, 1.0);
    for (int c = 0; c < classes; ++c)
        total += counts[n * classes + c] * (2 - counts[n * classes + c] / known);
    weights[i] = (2 - counts[i] / known) / (max(total, 1.0) * N);
}

// of_classes: (N, classes). An image has in_image of the n pixels.
KERNEL(256, 4) void weigh_pixels(const int64 *labels, const double *of_classes, int64 n, int in_image, int classes,
                                 bool has_ignored, int64 ignored, double *weights) {
    int64 i = thread_number();
    if (i >= n)
        return;
    int64 label = labels[i];
    bool counted = label >= 0 && label < classes && !(has_ignored && label == ignored);
    weights[i] = counted ? of_classes[i / in_image * classes + label] : 0;
}

KERNEL(256, 4) void labels_above(const scalar *scores, scalar threshold, const int64 *labels, int64 other, int64 n,
                                 int64 *above) {
    int64 i = thread_number();
    if (i < n)
        above[i] = scores[i] > threshold ? labels[i] : other;
}
