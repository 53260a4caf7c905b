// Shared by all kernels. One translation unit: kernels_cuda.py puts the files one after another.
// Every sum is taken in an order that does not depend on how threads are scheduled.

typedef unsigned long long u64;

#define WARP 32
#define FULL 0xffffffffu
#define TWO_PI 6.283185307179586

// A float as an unsigned integer with the same order.
__device__ __forceinline__ unsigned ordered(float value) {
    unsigned bits = __float_as_uint(value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float unordered(unsigned key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// Sorts by score, and by the lower index where scores are equal; no two keys are the same.
__device__ __forceinline__ u64 make_key(float score, unsigned index) {
    return ((u64)ordered(score) << 32) | (FULL - index);
}

__device__ __forceinline__ float key_score(u64 key) { return unordered((unsigned)(key >> 32)); }

__device__ __forceinline__ unsigned key_index(u64 key) { return FULL - (unsigned)key; }

// Bitonic sort, largest first; size is a power of two. All threads of the block take part.
__device__ void sort_keys(u64* keys, int size) {
    for (int width = 2; width <= size; width *= 2) {
        for (int gap = width / 2; gap > 0; gap /= 2) {
            __syncthreads();
            for (int i = threadIdx.x; i < size; i += blockDim.x) {
                int other = i ^ gap;
                if (other > i) {
                    bool down = (i & width) == 0;
                    u64 a = keys[i], b = keys[other];
                    if (down ? a < b : a > b) {
                        keys[i] = b;
                        keys[other] = a;
                    }
                }
            }
        }
    }
    __syncthreads();
}

// Sum over the block, given to all threads; the block has a power of two threads.
__device__ double block_sum(double value, double* room) {
    room[threadIdx.x] = value;
    for (int gap = blockDim.x / 2; gap > 0; gap /= 2) {
        __syncthreads();
        if (threadIdx.x < gap) room[threadIdx.x] += room[threadIdx.x + gap];
    }
    __syncthreads();
    double total = room[0];
    __syncthreads();
    return total;
}

__device__ __forceinline__ float warp_sum(float value) {
    for (int gap = WARP / 2; gap > 0; gap /= 2) value += __shfl_xor_sync(FULL, value, gap);
    return value;
}

// Trilinear value of a cube at (x, y, z) in grid steps, all positive. Each place of a cube holds its
// own value and that of the next x, so that a corner's two neighbours along x are one load.
__device__ __forceinline__ float2 sample(const float4* __restrict__ cube, int edge, float x,
                                         float y, float z) {
    int ix = (int)x, iy = (int)y, iz = (int)z;
    float fx = x - ix, fy = y - iy, fz = z - iz;
    const float4* p = cube + ((size_t)iz * edge + iy) * edge + ix;
    float re = 0.0f, im = 0.0f;
    for (int row = 0; row < 4; ++row) {
        float w = (row & 2 ? fz : 1.0f - fz) * (row & 1 ? fy : 1.0f - fy);
        float4 pair = p[(row & 2 ? (size_t)edge * edge : 0) + (row & 1 ? edge : 0)];
        re += w * (pair.x + fx * (pair.z - pair.x));
        im += w * (pair.y + fx * (pair.w - pair.y));
    }
    return make_float2(re, im);
}

// Value of the central slice at A.T @ (kx, ky, 0); a holds the first two rows of A.
__device__ __forceinline__ float2 slice_value(const float4* __restrict__ cube, int edge,
                                              const float* a, float kx, float ky, float scale) {
    float centre = (float)((edge - 1) / 2);
    kx *= scale;
    ky *= scale;
    return sample(cube, edge, kx * a[0] + ky * a[3] + centre, kx * a[1] + ky * a[4] + centre,
                  kx * a[2] + ky * a[5] + centre);
}

__device__ __forceinline__ float2 multiply(float2 a, float2 b) {
    return make_float2(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x);
}

// exp(-2 pi i k shift / box)
__device__ __forceinline__ float2 phase(int k, float shift, float box) {
    double turns = (double)k * shift / box;
    turns -= rint(turns);
    double s, c;
    sincos(-TWO_PI * turns, &s, &c);
    return make_float2((float)c, (float)s);
}

// Product of the tables' phases along x and y; the table of y holds k >= 0.
__device__ __forceinline__ float2 table_phase(const float2* ex, const float2* ey, int ikx, int iky) {
    float2 y = ey[iky < 0 ? -iky : iky];
    if (iky < 0) y.y = -y.y;
    return multiply(ex[ikx], y);
}

// How many of the sorted keys hold ``share`` of the tempered mass of the first ``size``.
// Every thread gives the terms it owns; thread 0 adds them in order. ``terms`` has keep places.
__device__ int cut_keys(const u64* keys, int size, double sharpness, double share, double* terms) {
    __shared__ int kept;
    double top = key_score(keys[0]);
    for (int i = threadIdx.x; i < size; i += blockDim.x)
        terms[i] = exp((key_score(keys[i]) - top) * sharpness);
    __syncthreads();
    if (threadIdx.x == 0) {
        double total = 0.0, running = 0.0;
        for (int i = 0; i < size; ++i) total += terms[i];
        kept = size;
        for (int i = 0; i < size; ++i) {
            running += terms[i];
            if (running >= share * total) {
                kept = i + 1;
                break;
            }
        }
    }
    __syncthreads();
    int result = kept;
    __syncthreads();
    return result;
}
