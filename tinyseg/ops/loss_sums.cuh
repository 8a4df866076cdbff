// How losses are summed over pixels: each block of 256 threads makes two sums, a second kernel those of all blocks, for
// instance finish_loss in labels.cu.

// partial: (2, blocks), of losses and weights for instance.
DEVICE void store_sums(double one, double two, double *partial) {
    SHARED double scratch[8];
    one = block_sum(one, scratch);
    two = block_sum(two, scratch);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = one;
        partial[gridDim.x + blockIdx.x] = two;
    }
}
