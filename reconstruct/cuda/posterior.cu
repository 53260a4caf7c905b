// What is known of each particle after its search: weights of its cells and mass of each class.

// Grid: a warp per particle. weights (b, capacity): posterior weights, rows sum to 1, blurred between
// the classes that kept a cell by ``similarity``. report (b, 13 + classes): rotation, shift, weight
// and evidence of the best cell, then the mass of each class. Shared memory: (warps, classes) floats.
extern "C" __global__ void posterior_weights(const float* score, const int* class_index,
                                             const int* count, const float* rotation,
                                             const float* shift, const float* evidence,
                                             int particles, int capacity, int classes,
                                             float similarity, float* weights, float* report) {
    extern __shared__ u64 shared[];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    size_t i = (size_t)blockIdx.x * (blockDim.x / WARP) + warp;
    if (i >= (size_t)particles) return;  // the whole warp
    float* gain = (float*)shared + warp * classes;
    score += i * capacity;
    class_index += i * capacity;
    weights += i * capacity;
    report += i * (13 + classes);
    int cells = count[i];
    float total = 0.0f;
    for (int c = lane; c < cells; c += WARP) total += expf(score[c] - score[0]);
    total = warp_sum(total);
    int kept = 0;
    for (int k = 0; k < classes; ++k) {
        float mass = 0.0f;
        for (int c = lane; c < cells; c += WARP)
            if (class_index[c] == k) mass += expf(score[c] - score[0]);
        mass = warp_sum(mass) / total;
        kept += mass > 0.0f;
        if (lane == 0) report[13 + k] = mass;
        if (lane == 0) gain[k] = 1.0f;
    }
    if (similarity > 0.0f && classes > 1 && lane == 0) {
        for (int k = 0; k < classes; ++k) {
            float mass = report[13 + k];
            if (mass <= 0.0f) continue;
            float wanted = (1.0f - similarity) * mass + similarity / kept;
            gain[k] = wanted / mass;
            report[13 + k] = wanted;
        }
    }
    __syncwarp();
    for (int c = lane; c < capacity; c += WARP) {
        float weight = 0.0f;
        if (c < cells) weight = expf(score[c] - score[0]) / total * gain[class_index[c]];
        weights[c] = weight;
        if (c == 0) report[11] = weight;
    }
    if (lane < 9) report[lane] = rotation[i * capacity * 9 + lane];
    if (lane < 2) report[9 + lane] = shift[i * capacity * 2 + lane];
    if (lane == 0) report[12] = evidence[i];
}
