// Back-projection with sums that do not depend on order: 64-bit fixed point.
//
// A value v is added as the integer nearest v * 2^e. With m the largest |value| of the particles and
// b their number, a voxel receives at most 16 b m: the samples of one slice lie at least one grid
// step apart, so fewer than 16 of a full plane's are within one step of a voxel along each axis,
// each with an interpolation weight up to 1, and a particle's posterior weights sum to 1.
// e = head - ilogb(m) - 1 with head = 62 - ceil(log2(16 b)), so no sum reaches 2^62; the quantum is
// 2^-e <= 16 b m 2^-60, some 10^-14 of the largest value for b = 1,000: finer than float32.

// Grid: one block per particle. largest (2,) are float bits: of |C X| and of C^2.
extern "C" __global__ void largest_value(const float* a_re, const float* a_im, const float* c2,
                                         int stride, int n, unsigned* largest) {
    size_t row = (size_t)blockIdx.x * stride;
    float data = 0.0f, weight = 0.0f;
    for (int j = threadIdx.x; j < n; j += blockDim.x) {
        // |re| + |im| bounds what a shift can turn one component into
        data = fmaxf(data, fabsf(a_re[row + j]) + fabsf(a_im[row + j]));
        weight = fmaxf(weight, fabsf(c2[row + j]));
    }
    for (int gap = WARP / 2; gap > 0; gap /= 2) {
        data = fmaxf(data, __shfl_xor_sync(FULL, data, gap));
        weight = fmaxf(weight, __shfl_xor_sync(FULL, weight, gap));
    }
    if (threadIdx.x % WARP == 0) {
        atomicMax(largest, __float_as_uint(data));  // positive floats order as their bits
        atomicMax(largest + 1, __float_as_uint(weight));
    }
}

__device__ __forceinline__ int exponent(const unsigned* largest, int channel, int head) {
    float value = __uint_as_float(largest[channel]);
    return value > 0.0f ? head - ilogbf(value) - 1 : 0;
}

__device__ __forceinline__ void add(u64* sum, double value) {
    atomicAdd(sum, (u64)llrint(value));
}

// Grid: one block per particle, those before ``first`` into half-set 0. sums (2, K, g, g, width, 3)
// int64: Re N, Im N, D.
// Shared memory: phase tables (capacity, 2, length) float2, then leaders (capacity,).
extern "C" __global__ void insert_particles(
    u64* sums, int edge, int width, int first, int classes, const float* kx, const float* ky,
    const int* ikx, const int* iky, float scale, float box, const float* a_re, const float* a_im,
    const float* c2, int stride, int n, int length, const float* cell_rotation,
    const int* cell_rotation_id, const float* cell_shift, const int* cell_class,
    const float* cell_weight, const int* cell_count, int capacity, const unsigned* largest,
    int head) {
    extern __shared__ u64 shared[];
    float2* tables = (float2*)shared;
    int* leader = (int*)(tables + 2 * capacity * length);
    size_t i = blockIdx.x;
    int cells = cell_count[i];
    cell_rotation += i * capacity * 9;
    cell_rotation_id += i * capacity;
    cell_shift += i * capacity * 2;
    cell_class += i * capacity;
    cell_weight += i * capacity;
    a_re += i * stride;
    a_im += i * stride;
    c2 += i * stride;
    for (int e = threadIdx.x; e < cells * length; e += blockDim.x) {
        int c = e / length, k = e % length;
        tables[2 * c * length + k] = phase(k, cell_shift[2 * c], box);
        tables[(2 * c + 1) * length + k] = phase(k, cell_shift[2 * c + 1], box);
    }
    for (int c = threadIdx.x; c < cells; c += blockDim.x) {
        int first = 0;
        while (cell_rotation_id[first] != cell_rotation_id[c]) ++first;
        leader[c] = first;
    }
    __syncthreads();
    double data_scale = ldexp(1.0, exponent(largest, 0, head));
    double weight_scale = ldexp(1.0, exponent(largest, 1, head));
    float centre = (float)((edge - 1) / 2);
    size_t row = 3 * (size_t)width, sheet = row * edge;
    if (i >= (size_t)first) sums += (size_t)classes * edge * sheet;
    for (int c = 0; c < cells; ++c) {
        if (leader[c] != c) continue;
        const float* a = cell_rotation + 9 * c;
        u64* target = sums + (size_t)cell_class[c] * edge * sheet;
        for (int j = threadIdx.x; j < n; j += blockDim.x) {
            float2 turn = make_float2(0.0f, 0.0f);
            float mass = 0.0f;
            for (int d = c; d < cells; ++d) {
                if (leader[d] != c || cell_weight[d] <= 0.0f) continue;
                const float2* table = tables + 2 * d * length;
                float2 p = table_phase(table, table + length, ikx[j], iky[j]);
                turn.x += cell_weight[d] * p.x;
                turn.y += cell_weight[d] * p.y;
                mass += cell_weight[d];
            }
            if (mass <= 0.0f) continue;
            float2 v = multiply(make_float2(a_re[j], a_im[j]), turn);
            float weight = mass * c2[j];
            float u = kx[j] * scale, w = ky[j] * scale;
            float x = u * a[0] + w * a[3], y = u * a[1] + w * a[4], z = u * a[2] + w * a[5];
            if (x < 0.0f) {
                x = -x;
                y = -y;
                z = -z;
                v.y = -v.y;
            }
            y += centre;
            z += centre;
            int ix = (int)x, iy = (int)y, iz = (int)z;
            float fx = x - ix, fy = y - iy, fz = z - iz;
            u64* corner = target + iz * sheet + iy * row + 3 * ix;
            for (int d = 0; d < 8; ++d) {
                double share = (double)((d & 4 ? fz : 1.0f - fz) * (d & 2 ? fy : 1.0f - fy) *
                                        (d & 1 ? fx : 1.0f - fx));
                u64* p = corner + (d & 4 ? sheet : 0) + (d & 2 ? row : 0) + (d & 1 ? 3 : 0);
                add(p, share * v.x * data_scale);
                add(p + 1, share * v.y * data_scale);
                add(p + 2, share * weight * weight_scale);
            }
        }
    }
}

// Lets statistics (2, K, per_class) fade by decay (K,) and adds the fixed-point sums to them.
// Grid: enough threads for size values.
extern "C" __global__ void fold_sums(const long long* sums, const unsigned* largest, int head,
                                     long long size, long long per_class, int classes,
                                     const float* decay, float* statistics) {
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= size) return;
    int e = exponent(largest, at % 3 == 2 ? 1 : 0, head);
    float kept = statistics[at] * decay[at / per_class % classes];
    statistics[at] = kept + (float)ldexp((double)sums[at], -e);
}
