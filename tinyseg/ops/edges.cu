// Edges of masks and Canny's edges: see edges.py, and tinyseg/data/edges.py for what they are.

// One thread, one pixel: whether a pixel not farther than `radius` has another label. Beyond the frame there is none.
KERNEL(256, 4) void mask_edges(const int64 *labels, int64 n, int H, int W, double radius, bool has_ignored,
                               int64 ignored, bool *edges) {
    int64 number = thread_number();
    if (number >= n)
        return;
    const int64 *image = labels + number / (int64(H) * W) * H * W;
    int h = int(number / W % H), w = int(number % W), reach = int(radius);
    int64 own = labels[number];
    bool is_class = !(has_ignored && own == ignored), found = false;
    for (int i = -reach; i <= reach; ++i)
        for (int j = -reach; j <= reach; ++j) {
            bool inside = 0 <= h + i && h + i < H && 0 <= w + j && w + j < W;
            bool differs = inside ? image[int64(h + i) * W + w + j] != own : is_class;
            found = found || (differs && i * i + j * j <= radius * radius);
        }
    edges[number] = found;
}

// ------------------------------------------------------------------------------------------------- Canny's edges

// The image that the eye sees, before it was normalised: grey values in whole numbers. The border goes on.
struct Visible {
    const scalar *image;
    int H, W, C;
    double mean, std;

    DEVICE double operator()(int h, int w, int c) const {
        int64 pixel = int64(min(max(h, 0), H - 1)) * W + min(max(w, 0), W - 1);
        return rint(255 * (image[pixel * C + c] * std + mean));
    }
};

// The derivatives u along a row and v down the rows, of the channel in which they are largest together.
KERNEL(256, 2) void sobel(const scalar *images, const double *mean, const double *std, int64 n, int H, int W, int C,
                          double *u, double *v) {
    int64 number = thread_number();
    if (number >= n)
        return;
    const scalar *image = images + number / (int64(H) * W) * H * W * C;
    int h = int(number / W % H), w = int(number % W);
    double largest = -1, best_u = 0, best_v = 0;
    for (int c = 0; c < C; ++c) {
        Visible x = {image, H, W, C, mean[c], std[c]};
        double before = x(h - 1, w - 1, c), behind = x(h + 1, w + 1, c);
        double right_above = x(h - 1, w + 1, c), left_below = x(h + 1, w - 1, c);
        double along = right_above - before + 2 * (x(h, w + 1, c) - x(h, w - 1, c)) + (behind - left_below);
        double down = left_below - before + 2 * (x(h + 1, w, c) - x(h - 1, w, c)) + (behind - right_above);
        double size = fabs(along) + fabs(down);
        if (size > largest) {
            largest = size;
            best_u = along;
            best_v = down;
        }
    }
    u[number] = best_u;
    v[number] = best_v;
}

// What a pixel is in the search for connected edges: NO_EDGE, STRONG, or the number from 1 on of a weak pixel that it is
// connected with, at first its own.
#define NO_EDGE -1
#define STRONG 0

// Pixels whose size |u| + |v| is a maximum across the edge.
KERNEL(256, 4) void thin(const double *u, const double *v, int64 n, int H, int W, double low, double high,
                         int *states) {
    int64 number = thread_number();
    if (number >= n)
        return;
    int h = int(number / W % H), w = int(number % W);
    auto size = [=](int down, int right) -> double {
        bool inside = 0 <= h + down && h + down < H && 0 <= w + right && w + right < W;
        int64 at = number + int64(down) * W + right;
        return inside ? fabs(u[at]) + fabs(v[at]) : 0;
    };
    const double tangent = 0.41421356237309515;  // of 22.5 degrees
    double along = fabs(u[number]), down = fabs(v[number]), own = along + down;
    bool is_maximum;
    if (down < tangent * along)
        is_maximum = own > size(0, -1) && own >= size(0, 1);
    else if (along < tangent * down)
        is_maximum = own > size(-1, 0) && own >= size(1, 0);
    else {
        int side = (u[number] < 0) == (v[number] < 0) ? 1 : -1;  // the gradient points right and down, or left and down
        is_maximum = own > size(-1, -side) && own > size(1, side);
    }
    states[number] = !is_maximum || !(own > low) ? NO_EDGE : own > high ? STRONG : h * W + w + 1;
}

// What is connected with a strong pixel, by 8-neighbours, is an edge. One block, one image. Each pixel takes the lowest
// state that it sees: its neighbours', and that of the pixel whose number this is, which takes the search far ahead.
// When nothing changes any more, connected pixels have one state. In which order they came to it does not matter.
KERNEL(1024, 1) void connect(int H, int W, int *states, scalar *edges) {
    SHARED int scratch[32];
    int pixels = H * W, changed = 1;
    int *image = states + int64(blockIdx.x) * pixels;
    while (changed) {
        changed = 0;
        for (int number = threadIdx.x; number < pixels; number += 1024) {
            int state = image[number];
            if (state <= STRONG)
                continue;
            int h = number / W, w = number % W, lowest = state;
            for (int r = max(h - 1, 0); r <= min(h + 1, H - 1); ++r)
                for (int c = max(w - 1, 0); c <= min(w + 1, W - 1); ++c) {
                    int other = image[r * W + c];
                    lowest = other == NO_EDGE ? lowest : min(lowest, other);
                }
            if (lowest != STRONG)
                lowest = min(lowest, image[lowest - 1]);
            if (lowest < state) {
                image[number] = lowest;
                changed = 1;
            }
        }
        changed = block_sum(changed, scratch);
    }
    for (int number = threadIdx.x; number < pixels; number += 1024)
        edges[int64(blockIdx.x) * pixels + number] = image[number] == STRONG;
}
