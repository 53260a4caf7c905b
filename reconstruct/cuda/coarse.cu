// The coarse pass: slices, the best score of each rotation on tensor cores, the choice of cells.
//
// No score matrix is written: a warp keeps the scores of 16 shifts x 8 rotations in registers and
// hands out their maximum over the shifts. The keep best cells lie on the keep best rotations, so
// only those are scored again, in float32, shift by shift. The bfloat16 products of the first pass
// decide nothing but which rotations these are.
//
// Rotations come in pairs: one, and the same turned by 180 degrees in the image, whose slice is the
// complex conjugate. With a spectrum A, moved by a shift, and a slice P their scores are R + I and
// R - I, where R = Re A . Re P - C^2 . |P|^2 / 2 and I = Im A . Im P: half of the products.

#define STEP 16          // numbers of the inner dimension that one matrix instruction takes
#define SHARED_STEPS 9   // of R: 2 n numbers, so n = 72 coefficients at most
#define SIGNED_STEPS 5   // of I: n numbers
#define MOST_STEPS 14    // of both
#define UNITS 2          // groups of 16 shifts that a warp works on
#define TILE 16          // pairs of rotations that it scores at a time
#define STAGE 4          // tiles that are brought to shared memory at a time
#define COARSE_THREADS 384
#define STAGES 3         // rooms for them: one in use, two being filled

static_assert(MOST_STEPS == SHARED_STEPS + SIGNED_STEPS, "steps");

__device__ __forceinline__ unsigned bfloat_pair(float low, float high) {
#ifdef __CUDA_ARCH__
    unsigned packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#else
    return host_bfloat(low) | host_bfloat(high) << 16;
#endif
}

// c += a b: 16 x 16 and 16 x 8 bfloat16, float32 sums; the warp's lanes hold the parts.
__device__ __forceinline__ void tensor_product(float* c, uint4 a, const unsigned* b) {
#ifdef __CUDA_ARCH__
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b[0]), "r"(b[1]));
#else
    host_tensor_product(c, &a.x, b[0], b[1]);
#endif
}

// Starts to bring 16 bytes to shared memory.
__device__ __forceinline__ void fetch(uint4* to, const uint4* from) {
#ifdef __CUDA_ARCH__
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                     (unsigned)__cvta_generic_to_shared(to)),
                 "l"(from));
#else
    *to = *from;
#endif
}

// Marks what this thread fetched until now; waits for all of it but what the last mark closed.
__device__ __forceinline__ void mark_fetches() {
#ifdef __CUDA_ARCH__
    asm volatile("cp.async.commit_group;");
#endif
}

__device__ __forceinline__ void wait_for_fetches() {
#ifdef __CUDA_ARCH__
    asm volatile("cp.async.wait_group 1;");
#endif
}

// Number k of a pair of rotations in the inner dimension, of their first slice (n,).
__device__ __forceinline__ float right_number(const float2* slice, int n, int k) {
    const int shared = STEP * SHARED_STEPS;
    if (k >= shared) return k - shared < n ? slice[k - shared].y : 0.0f;
    if (k < n) return slice[k].x;
    if (k >= 2 * n) return 0.0f;
    float2 value = slice[k - n];
    return -0.5f * (value.x * value.x + value.y * value.y);
}

// Grid: (ceil(r / 32), sets). Turns the base grid (r / 2, 9), and that by 180 degrees in the image;
// samples each set's cube at 16 pairs of rotations.
// rotations (r, 9), slices (sets, r, n), fragments (sets, tiles, MOST_STEPS, 32) in the order in
// which the lanes of a warp take the left factor. Shared memory: 16 n float2.
extern "C" __global__ void coarse_slices(const float4* cubes, int edge, const float* base,
                                         const float* turn, const float* kx, const float* ky, int n,
                                         int r, float scale, float* rotations, float2* slices,
                                         uint4* fragments) {
    extern __shared__ u64 shared[];
    float2* values = (float2*)shared;  // (16, n)
    __shared__ float turned[TILE][9];
    int pairs = r / 2, first = blockIdx.x * TILE, here = min(TILE, pairs - first);
    int set = blockIdx.y;
    for (int e = threadIdx.x; e < 9 * here; e += blockDim.x) {
        const float* b = base + 9 * (size_t)(first + e / 9);
        int row = e % 9 / 3, col = e % 3;
        float value = turn[3 * row] * b[col] + turn[3 * row + 1] * b[3 + col] +
                      turn[3 * row + 2] * b[6 + col];
        turned[e / 9][e % 9] = value;
        if (set == 0) {
            rotations[9 * (size_t)first + e] = value;
            rotations[9 * (size_t)(pairs + first) + e] = row < 2 ? -value : value;
        }
    }
    __syncthreads();
    const float4* cube = cubes + (size_t)set * edge * edge * edge;
    for (int e = threadIdx.x; e < TILE * n; e += blockDim.x) {
        int m = e / n, j = e % n;
        float2 value = make_float2(0.0f, 0.0f);
        if (m < here) {
            value = slice_value(cube, edge, turned[m], kx[j], ky[j], scale);
            size_t to = ((size_t)set * r + first + m) * n + j;
            slices[to] = value;
            slices[to + (size_t)pairs * n] = make_float2(value.x, -value.y);
        }
        values[e] = value;
    }
    __syncthreads();
    uint4* out = fragments + ((size_t)set * gridDim.x + blockIdx.x) * MOST_STEPS * WARP;
    for (int e = threadIdx.x; e < MOST_STEPS * WARP; e += blockDim.x) {
        int lane = e % WARP, k = e / WARP * STEP + lane % 4 * 2;
        unsigned parts[4];
        for (int part = 0; part < 4; ++part) {
            const float2* slice = values + (lane / 4 + part % 2 * 8) * n;
            int at = k + part / 2 * 8;
            parts[part] = bfloat_pair(right_number(slice, n, at), right_number(slice, n, at + 1));
        }
        out[e] = make_uint4(parts[0], parts[1], parts[2], parts[3]);
    }
}

// Number k of a spectrum moved by one shift, and of its C^2, in the inner dimension.
__device__ __forceinline__ float moved_number(const float* a_re, const float* a_im, const float* c2,
                                              const float2* phases, int n, int k) {
    const int shared = STEP * SHARED_STEPS;
    int j = k < shared ? k : k - shared;
    if (j < n) {
        float2 moved = multiply(make_float2(a_re[j], a_im[j]), phases[j]);
        return k < shared ? moved.x : moved.y;
    }
    return k < shared && k < 2 * n ? c2[k - n] : 0.0f;
}

// Lanes of a quad hold other shifts of the same rotations. In each of two rounds a lane hands half of
// its values over and takes the maximum with the other half: at the end it has those of one rotation.
template <int HALF>
__device__ __forceinline__ void hand_over(float* best, int lane, int gap) {
    bool upper = lane & gap;
#pragma unroll
    for (int e = 0; e < HALF; ++e) {
        float given = upper ? best[e] : best[e + HALF];
        float kept = upper ? best[e + HALF] : best[e];
        best[e] = fmaxf(kept, __shfl_xor_sync(FULL, given, gap));
    }
}

// The block starts to bring a stage's tiles from ``tile`` on to shared memory.
__device__ __forceinline__ void fetch_tiles(uint4* room, const uint4* fragments, int tile,
                                            int last) {
    const int tile_pieces = MOST_STEPS * WARP;
    for (int e = threadIdx.x; e < min(STAGE, last - tile) * tile_pieces; e += blockDim.x)
        fetch(room + e, fragments + (size_t)tile * tile_pieces + e);
    mark_fetches();
}

// Grid: (blocks of units, parts of the tiles). A unit is one particle and 16 of its t shifts; units of
// particles before ``first`` are scored against the classes of set 0, others against those of set 1,
// and no block has both. maxima (units, classes, 2, 16 tiles): best score over the unit's shifts, of
// rotations and of the same with their half turn.
// All warps of a block take the rotations from shared memory, their particles from registers. They
// meet once a stage only, so that one's maxima are taken while another's products are summed.
extern "C" __global__ void __launch_bounds__(COARSE_THREADS, 1)
    coarse_maxima(const float* a_re, const float* a_im, const float* c2, int stride,
                  const float2* phases, int t, int n, int particles, int first, int classes,
                  int tiles, const uint4* fragments, float* maxima) {
    extern __shared__ u64 shared[];
    const int tile_pieces = MOST_STEPS * WARP, stage_pieces = STAGE * tile_pieces;
    uint4* room = (uint4*)shared;
    int lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    int per_particle = (t + 15) / 16, per_block = warps * UNITS;
    int firsts = (first * per_particle + per_block - 1) / per_block;  // blocks of set 0
    int set = (int)blockIdx.x >= firsts;
    int end = (set ? particles : first) * per_particle;
    int begin = set ? first * per_particle + (blockIdx.x - firsts) * per_block
                    : blockIdx.x * per_block;
    begin += threadIdx.x / WARP * UNITS;
    int all = classes * tiles, share = (all + gridDim.y - 1) / gridDim.y;
    int tile = blockIdx.y * share, last = min(all, tile + share);
    fragments += (size_t)set * all * tile_pieces;
    for (int stage = 0; stage < STAGES - 1; ++stage)
        fetch_tiles(room + stage * stage_pieces, fragments, tile + stage * STAGE, last);
    unsigned b[UNITS][2][MOST_STEPS][2];  // two columns of eight shifts to a unit
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
        int unit = min(begin + u, end - 1), i = unit / per_particle;
        const float* re = a_re + (size_t)i * stride;
        const float* im = a_im + (size_t)i * stride;
        const float* power = c2 + (size_t)i * stride;
#pragma unroll
        for (int column = 0; column < 2; ++column) {
            int shift = unit % per_particle * 16 + column * 8 + lane / 4;
            const float2* moves = phases + (size_t)min(shift, t - 1) * n;  // beyond t: the last again
#pragma unroll
            for (int part = 0; part < 2 * MOST_STEPS; ++part) {
                int k = part * 8 + lane % 4 * 2;
                b[u][column][part / 2][part % 2] =
                    bfloat_pair(moved_number(re, im, power, moves, n, k),
                                moved_number(re, im, power, moves, n, k + 1));
            }
        }
    }
    for (int used = 0; tile < last; tile += STAGE, used = used + 1 == STAGES ? 0 : used + 1) {
        wait_for_fetches();
        __syncthreads();  // the room that was used last is free, too
        fetch_tiles(room + (used ? used - 1 : STAGES - 1) * stage_pieces, fragments,
                    tile + (STAGES - 1) * STAGE, last);
        for (int m = 0; m < STAGE && tile + m < last; ++m) {
            const uint4* a = room + used * stage_pieces + m * tile_pieces + lane;
            float sums[2][UNITS][2][4] = {};  // R and I
#pragma unroll
            for (int step = 0; step < MOST_STEPS; ++step) {
                uint4 left = a[step * WARP];
#pragma unroll
                for (int e = 0; e < 2 * UNITS; ++e)
                    tensor_product(sums[step >= SHARED_STEPS][e / 2][e % 2], left,
                                   b[e / 2][e % 2][step]);
            }
            float best[4 * UNITS];  // sign by sign, row by row, unit by unit
#pragma unroll
            for (int u = 0; u < UNITS; ++u) {
#pragma unroll
                for (int row = 0; row < 2; ++row) {
                    float plus = 0.0f, minus = 0.0f;
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        float r = sums[0][u][e / 2][2 * row + e % 2];
                        float i = sums[1][u][e / 2][2 * row + e % 2];
                        plus = e ? fmaxf(plus, r + i) : r + i;
                        minus = e ? fmaxf(minus, r - i) : r - i;
                    }
                    best[row * UNITS + u] = plus;
                    best[(2 + row) * UNITS + u] = minus;
                }
            }
            hand_over<2 * UNITS>(best, lane, 1);
            hand_over<UNITS>(best, lane, 2);
            int group = tile + m, sign = lane % 2, row = lane / 4 + lane / 2 % 2 * 8;
            size_t at = (size_t)(group / tiles * 2 + sign) * tiles + group % tiles;
#pragma unroll
            for (int u = 0; u < UNITS; ++u)
                if (begin + u < end)
                    maxima[((size_t)(begin + u) * 2 * all + at) * TILE + row] = best[u];
        }
    }
}

#define SELECT_ROOM 1024

// Best score of rotation k, class by class: over the particle's units, with the class's prior.
__device__ __forceinline__ float rotation_score(const float* maxima, int units, int padded, int r,
                                                int classes, const float* log_prior, int k) {
    int j = k % r, pairs = r / 2;
    int at = k / r * padded + (j < pairs ? j : padded / 2 + j - pairs);
    float best = maxima[at];
    for (int unit = 1; unit < units; ++unit)
        best = fmaxf(best, maxima[(size_t)unit * classes * padded + at]);
    return best + log_prior[k / r];
}

// Grid: one block per particle. The keep-th largest of the threads' own maxima bounds the keep-th
// largest rotation from below; what reaches it is sorted. Where too many do (ties), the exact bound
// is bisected instead. The shifts of the best rotations are scored in float32 and the cells cut.
// turns (n, t): phases of the shifts. keep <= blockDim.x, a power of two. Shared memory: keys (room),
// then each warp's products (n).
extern "C" __global__ void choose_cells(
    const float* maxima, int units, int padded, int r, int classes, const float* log_prior,
    const float2* slices, const float* rotations, const float2* turns, const float* shifts, int t,
    const float* a_re, const float* a_im, const float* c2, int stride, int n, int first, int keep,
    double sharpness, double share, int room, float* out_rotation, int* out_rotation_id,
    float* out_shift, int* out_shift_id, int* out_class, float* out_score, int* out_count) {
    extern __shared__ u64 shared[];
    u64* keys = shared;                        // (room,)
    float2* products = (float2*)(keys + room);  // (warps, n)
    __shared__ double terms[1024];
    __shared__ int found, chosen[SELECT_ROOM];
    size_t i = blockIdx.x;
    int all = classes * r;
    maxima += i * units * classes * padded;
    float best = __uint_as_float(0xff800000u);
    for (int k = threadIdx.x; k < all; k += blockDim.x)
        best = fmaxf(best, rotation_score(maxima, units, padded, r, classes, log_prior, k));
    keys[threadIdx.x] = make_key(best, threadIdx.x);
    if (threadIdx.x == 0) found = 0;
    sort_keys(keys, blockDim.x);
    float bound = key_score(keys[keep - 1]);
    __syncthreads();
    for (int k = threadIdx.x; k < all; k += blockDim.x) {
        float score = rotation_score(maxima, units, padded, r, classes, log_prior, k);
        if (score < bound) continue;
        int place = atomicAdd(&found, 1);
        if (place < SELECT_ROOM) keys[place] = make_key(score, k);
    }
    __syncthreads();
    if (found > SELECT_ROOM) {
        u64 low = 0;  // the largest key that keep keys reach, bit by bit
        for (int bit = 63; bit >= 0; --bit) {
            u64 trial = low | ((u64)1 << bit);
            double reached = 0.0;
            for (int k = threadIdx.x; k < all; k += blockDim.x)
                reached += make_key(rotation_score(maxima, units, padded, r, classes, log_prior, k),
                                    k) >= trial;
            if (block_sum(reached, terms) >= keep) low = trial;
        }
        if (threadIdx.x == 0) found = 0;
        __syncthreads();
        for (int k = threadIdx.x; k < all; k += blockDim.x) {
            u64 key =
                make_key(rotation_score(maxima, units, padded, r, classes, log_prior, k), k);
            if (key < low) continue;
            int place = atomicAdd(&found, 1);
            if (place < SELECT_ROOM) keys[place] = key;
        }
        __syncthreads();
    }
    int held = min(found, SELECT_ROOM), size = 1;
    while (size < held) size *= 2;
    for (int j = held + threadIdx.x; j < size; j += blockDim.x) keys[j] = 0;
    sort_keys(keys, size);
    int best_rotations = min(held, keep);
    for (int j = threadIdx.x; j < best_rotations; j += blockDim.x)
        chosen[j] = (int)key_index(keys[j]);
    __syncthreads();

    size = 1;
    while (size < best_rotations * t) size *= 2;
    for (int j = best_rotations * t + threadIdx.x; j < size; j += blockDim.x) keys[j] = 0;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const float2* own = slices + (i >= (size_t)first ? (size_t)all * n : 0);
    a_re += i * stride;
    a_im += i * stride;
    c2 += i * stride;
    float2* product = products + warp * n;
    for (int m = warp; m < best_rotations; m += warps) {
        const float2* p = own + (size_t)chosen[m] * n;
        float power = 0.0f;
        for (int j = lane; j < n; j += WARP) {
            float2 value = p[j];
            power += c2[j] * (value.x * value.x + value.y * value.y);
            product[j] = multiply(make_float2(a_re[j], a_im[j]), make_float2(value.x, -value.y));
        }
        float rest = log_prior[chosen[m] / r] - 0.5f * warp_sum(power);
        __syncwarp();
        for (int begin = 0; begin < t; begin += WARP / 2) {  // two lanes to a shift
            int s = begin + lane / 2;
            float score = 0.0f;
            for (int j = lane % 2; s < t && j < n; j += 2) {
                float2 turn = turns[(size_t)j * t + s];
                score += product[j].x * turn.x - product[j].y * turn.y;
            }
            score += __shfl_xor_sync(FULL, score, 1);
            if (lane % 2 == 0 && s < t)
                keys[m * t + s] = make_key(score + rest, (unsigned)(s * all + chosen[m]));
        }
        __syncwarp();
    }
    sort_keys(keys, size);
    int kept = cut_keys(keys, min(best_rotations * t, keep), sharpness, share, terms);
    for (int j = threadIdx.x; j < kept; j += blockDim.x) {
        unsigned cell = key_index(keys[j]);
        int s = cell / all, k = cell % all;
        size_t to = i * keep + j;
        for (int e = 0; e < 9; ++e) out_rotation[9 * to + e] = rotations[9 * (size_t)(k % r) + e];
        out_rotation_id[to] = k;
        out_shift[2 * to] = shifts[2 * s];
        out_shift[2 * to + 1] = shifts[2 * s + 1];
        out_shift_id[to] = s;
        out_class[to] = k / r;
        out_score[to] = key_score(keys[j]);
    }
    if (threadIdx.x == 0) out_count[i] = kept;
}
