// The coarse pass: slices, shifted spectra, and the choice of the best cells.

// Grid: one block per rotation. out (m, 2, n): real and imaginary planes.
extern "C" __global__ void extract_slices(const float2* cube, int edge, const float* rotations,
                                          const float* kx, const float* ky, int n, float scale,
                                          float* out) {
    const float* a = rotations + 9 * (size_t)blockIdx.x;
    float* re = out + 2 * (size_t)n * blockIdx.x;
    for (int j = threadIdx.x; j < n; j += blockDim.x) {
        float2 value = slice_value(cube, edge, a, kx[j], ky[j], scale);
        re[j] = value.x;
        re[n + j] = value.y;
    }
}

// Grid: (particle, shift). Rows of a are stride long; out (b, t, 2n).
extern "C" __global__ void shift_rows(const float* a_re, const float* a_im, int stride,
                                      const float* phase_re, const float* phase_im, int n,
                                      float* out) {
    const float* re = a_re + (size_t)stride * blockIdx.x;
    const float* im = a_im + (size_t)stride * blockIdx.x;
    const float* p_re = phase_re + (size_t)n * blockIdx.y;
    const float* p_im = phase_im + (size_t)n * blockIdx.y;
    float* row = out + ((size_t)blockIdx.x * gridDim.y + blockIdx.y) * 2 * n;
    for (int j = threadIdx.x; j < n; j += blockDim.x) {
        row[j] = re[j] * p_re[j] - im[j] * p_im[j];
        row[n + j] = re[j] * p_im[j] + im[j] * p_re[j];
    }
}

#define SELECT_ROOM 2048

__device__ __forceinline__ float cell_score(const float* scores, const float* half_power,
                                            const float* log_prior, int s, int k, int r) {
    return scores[(size_t)s * r + k] + (log_prior[k] - half_power[k]);
}

// Grid: one block per particle. Two passes over the scores: the keep-th largest of the threads'
// own maxima bounds the keep-th largest score from below; what reaches it is collected and sorted.
// Where too many do, the exact bound is bisected instead. keep <= blockDim.x, a power of two.
extern "C" __global__ void select_cells(const float* scores, const float* half_power,
                                        const float* log_prior, int t, int r, int keep,
                                        double sharpness, double share, int* index, float* value,
                                        int* count) {
    __shared__ u64 keys[SELECT_ROOM];
    __shared__ double terms[1024];
    __shared__ int found;
    size_t i = blockIdx.x;
    scores += i * t * r;
    half_power += i * r;
    float best = __uint_as_float(0xff800000u);
    for (int s = 0; s < t; ++s)
        for (int k = threadIdx.x; k < r; k += blockDim.x)
            best = fmaxf(best, cell_score(scores, half_power, log_prior, s, k, r));
    keys[threadIdx.x] = make_key(best, threadIdx.x);
    if (threadIdx.x == 0) found = 0;
    sort_keys(keys, blockDim.x);
    float bound = key_score(keys[keep - 1]);
    __syncthreads();
    for (int s = 0; s < t; ++s) {
        for (int k = threadIdx.x; k < r; k += blockDim.x) {
            float score = cell_score(scores, half_power, log_prior, s, k, r);
            if (score >= bound) {
                int place = atomicAdd(&found, 1);
                if (place < SELECT_ROOM) keys[place] = make_key(score, s * r + k);
            }
        }
    }
    __syncthreads();
    if (found > SELECT_ROOM) {
        u64 low = 0;  // the largest key that keep keys reach, bit by bit
        for (int bit = 63; bit >= 0; --bit) {
            u64 trial = low | ((u64)1 << bit);
            double reached = 0.0;
            for (int s = 0; s < t; ++s)
                for (int k = threadIdx.x; k < r; k += blockDim.x)
                    reached += make_key(cell_score(scores, half_power, log_prior, s, k, r),
                                        s * r + k) >= trial;
            if (block_sum(reached, terms) >= keep) low = trial;
        }
        if (threadIdx.x == 0) found = 0;
        __syncthreads();
        for (int s = 0; s < t; ++s) {
            for (int k = threadIdx.x; k < r; k += blockDim.x) {
                u64 key = make_key(cell_score(scores, half_power, log_prior, s, k, r), s * r + k);
                if (key >= low) {
                    int place = atomicAdd(&found, 1);
                    if (place < SELECT_ROOM) keys[place] = key;
                }
            }
        }
        __syncthreads();
    }
    int held = min(found, SELECT_ROOM);
    int size = 1;
    while (size < held) size *= 2;
    for (int j = held + threadIdx.x; j < size; j += blockDim.x) keys[j] = 0;
    sort_keys(keys, size);
    int kept = cut_keys(keys, min(held, keep), sharpness, share, terms);
    for (int j = threadIdx.x; j < kept; j += blockDim.x) {
        index[i * keep + j] = (int)key_index(keys[j]);
        value[i * keep + j] = key_score(keys[j]);
    }
    if (threadIdx.x == 0) count[i] = kept;
}
