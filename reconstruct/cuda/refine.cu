// Splitting cells: 8 rotations x 4 shifts of every parent, scored and cut in one launch.

#define TOGETHER 4  // parents whose children share one walk over the slice

// Rotation o of the children of a parent: offset @ cell.
__device__ __forceinline__ void child_rotation(const float* offset, const float* cell, int rows,
                                               float* out) {
    for (int row = 0; row < rows; ++row)
        for (int col = 0; col < 3; ++col)
            out[3 * row + col] = offset[3 * row] * cell[col] + offset[3 * row + 1] * cell[3 + col] +
                                 offset[3 * row + 2] * cell[6 + col];
}

// Grid: one block per particle; particles from ``first`` on are scored against the second ``classes``
// cubes. A warp takes one child rotation of one group of parents that share
// a rotation. A shift enters as a phase on X conj(P): the parent's from tables, and the children's
// +-quarter steps as four sums of two products, because cos and sin of the sum and difference of
// two angles serve all four. Nothing but the results leaves the block.
// Shared memory: keys (room), tables of the parents' shifts, of the children's step, and lists.
extern "C" __global__ void __launch_bounds__(256, 3) refine_poses(
    const float4* cubes, int edge, int first, int classes, const float* kx, const float* ky,
    const int* ikx, const int* iky, float scale, float box, const float* a_re, const float* a_im, const float* c2, int stride,
    int n, int length, const float* offsets, float shift_step, const float* log_prior,
    const float* cell_rotation, const int* cell_rotation_id, const float* cell_shift,
    const int* cell_shift_id, const int* cell_class, const int* cell_count, int capacity, int keep,
    double sharpness, double share, int room, float* out_rotation, int* out_rotation_id,
    float* out_shift, int* out_shift_id, int* out_class, float* out_score, int* out_count,
    float* out_evidence) {
    extern __shared__ u64 shared[];
    __shared__ int groups, slots;
    size_t i = blockIdx.x;
    int cells = cell_count[i];
    u64* keys = shared;                             // (room,)
    double* terms = (double*)(keys + room);         // (max(keep, threads),)
    float2* ex = (float2*)(terms + max(keep, (int)blockDim.x));  // (capacity, length)
    float2* ey = ex + capacity * length;            // (capacity, length)
    float2* hx = ey + capacity * length;            // (length,) cos, sin of the children's step
    float2* hy = hx + length;
    int* leader = (int*)(hy + length);              // (capacity,) first cell of each group
    int* group_of = leader + capacity;              // (capacity,)
    int* slot_of = group_of + capacity;             // (capacity,) table of each cell
    int* first_of = slot_of + capacity;             // (capacity,) first cell of each table
    cell_rotation += i * capacity * 9;
    cell_rotation_id += i * capacity;
    cell_shift += i * capacity * 2;
    cell_shift_id += i * capacity;
    cell_class += i * capacity;
    a_re += i * stride;
    a_im += i * stride;
    c2 += i * stride;
    float quarter = shift_step / 4.0f;
    if (i >= (size_t)first) cubes += (size_t)classes * edge * edge * edge;

    for (int c = threadIdx.x; c < cells; c += blockDim.x) {
        int same_rotation = 0, same_shift = 0;
        while (cell_rotation_id[same_rotation] != cell_rotation_id[c]) ++same_rotation;
        while (cell_shift_id[same_shift] != cell_shift_id[c]) ++same_shift;
        group_of[c] = same_rotation;  // the leader for now
        slot_of[c] = same_shift;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        groups = slots = 0;
        for (int c = 0; c < cells; ++c) {
            if (group_of[c] == c) {
                leader[groups] = c;
                group_of[c] = groups++;
            } else {
                group_of[c] = group_of[group_of[c]];
            }
            if (slot_of[c] == c) {
                first_of[slots] = c;
                slot_of[c] = slots++;
            } else {
                slot_of[c] = slot_of[slot_of[c]];
            }
        }
    }
    __syncthreads();
    for (int e = threadIdx.x; e < slots * length; e += blockDim.x) {
        int slot = e / length, k = e % length;
        ex[e] = phase(k, cell_shift[2 * first_of[slot]], box);
        ey[e] = phase(k, cell_shift[2 * first_of[slot] + 1], box);
    }
    for (int k = threadIdx.x; k < length; k += blockDim.x) {
        float2 step = phase(k, quarter, box);
        hx[k] = hy[k] = make_float2(step.x, -step.y);
    }
    for (int j = 32 * cells + threadIdx.x; j < room; j += blockDim.x) keys[j] = 0;
    __syncthreads();

    int lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    for (int task = threadIdx.x / WARP; task < 8 * groups; task += warps) {
        int head = leader[task / 8], o = task % 8, gid = cell_rotation_id[head];
        int k = cell_class[head];
        const float4* cube = cubes + (size_t)k * edge * edge * edge;
        float a[6];
        child_rotation(offsets + 9 * o, cell_rotation + 9 * head, 2, a);
        int next = head;
        while (next < cells) {
            int cell[TOGETHER], members = 0;
            for (int m = 0; m < TOGETHER; ++m) cell[m] = head;
            for (; next < cells && members < TOGETHER; ++next)
                if (cell_rotation_id[next] == gid) cell[members++] = next;
            if (members == 0) break;
            float power = 0.0f, sums[TOGETHER][4] = {};
#pragma unroll 2
            for (int j = lane; j < n; j += WARP) {
                float2 p = slice_value(cube, edge, a, kx[j], ky[j], scale);
                power += c2[j] * (p.x * p.x + p.y * p.y);
                float2 w = multiply(make_float2(a_re[j], a_im[j]), make_float2(p.x, -p.y));
                int x = ikx[j], y = iky[j];
                float2 qx = hx[x], qy = hy[y < 0 ? -y : y];
                if (y < 0) qy.y = -qy.y;
                float cc = qx.x * qy.x, ss = qx.y * qy.y, sc = qx.y * qy.x, cs = qx.x * qy.y;
                for (int m = 0; m < TOGETHER; ++m) {
                    if (m >= members) continue;
                    int table = slot_of[cell[m]] * length;
                    float2 u = multiply(w, table_phase(ex + table, ey + table, x, y));
                    sums[m][0] += u.x * (cc - ss);  // cosine of the sum
                    sums[m][1] += u.y * (sc + cs);  // sine of the sum
                    sums[m][2] += u.x * (cc + ss);  // cosine of the difference
                    sums[m][3] += u.y * (sc - cs);  // sine of the difference
                }
            }
            float base = log_prior[k] - 0.5f * warp_sum(power);
            for (int m = 0; m < TOGETHER; ++m) {  // unrolled, so that the sums stay in registers
                if (m >= members) continue;       // the same for the whole warp
                float c_plus = warp_sum(sums[m][0]), s_plus = warp_sum(sums[m][1]);
                float c_minus = warp_sum(sums[m][2]), s_minus = warp_sum(sums[m][3]);
                if (lane == 0) {
                    int at = 32 * cell[m] + 4 * o;  // children: bit 0 is +x, bit 1 is +y
                    keys[at] = make_key(base + c_plus - s_plus, at);
                    keys[at + 1] = make_key(base + c_minus + s_minus, at + 1);
                    keys[at + 2] = make_key(base + c_minus - s_minus, at + 2);
                    keys[at + 3] = make_key(base + c_plus + s_plus, at + 3);
                }
            }
        }
    }
    int size = 1;
    while (size < 32 * cells) size *= 2;
    sort_keys(keys, size);
    double top = key_score(keys[0]), total = 0.0;
    for (int j = threadIdx.x; j < 32 * cells; j += blockDim.x) total += exp(key_score(keys[j]) - top);
    total = block_sum(total, terms);
    int kept = cut_keys(keys, min(32 * cells, keep), sharpness, share, terms);
    for (int j = threadIdx.x; j < kept; j += blockDim.x) {
        int child = (int)key_index(keys[j]), c = child / 32, o = child / 4 % 8, m = child % 4;
        size_t to = i * keep + j;
        child_rotation(offsets + 9 * o, cell_rotation + 9 * c, 3, out_rotation + 9 * to);
        out_rotation_id[to] = 8 * group_of[c] + o;
        out_shift[2 * to] = cell_shift[2 * c] + (m & 1 ? quarter : -quarter);
        out_shift[2 * to + 1] = cell_shift[2 * c + 1] + (m & 2 ? quarter : -quarter);
        out_shift_id[to] = 4 * slot_of[c] + m;
        out_class[to] = cell_class[c];
        out_score[to] = key_score(keys[j]);
    }
    if (threadIdx.x == 0) {
        out_count[i] = kept;
        out_evidence[i] = (float)(top + log(total));
    }
}
