// From statistics to references, all classes and half-sets at once: what update.py does map by map.
//
// A crop is a centred half cube (g, g, reach + 1, 3) of Re N, Im N, D; crops (2, K, ...) are of the
// two half-sets. Spectra have the layout of a real transform of edge ``size``.

// Place of (z, y, x) of a half cube, each from -reach (x from 0), in a spectrum of edge size.
__device__ __forceinline__ size_t wrapped(int z, int y, int x, int size) {
    return ((size_t)(z < 0 ? z + size : z) * size + (y < 0 ? y + size : y)) * (size / 2 + 1) + x;
}

// Grid: (enough threads for a crop's voxels, 2 K). Statistics (2 K, edge, edge, width, 3). A sample
// next to the plane x = 0 also reaches it through its Friedel mate.
extern "C" __global__ void crop_statistics(const float* statistics, int edge, int width, int reach,
                                           float* crops) {
    int g = 2 * reach + 1, at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= g * g * (reach + 1)) return;
    int x = at % (reach + 1), y = at / (reach + 1) % g - reach, z = at / (reach + 1) / g - reach;
    int centre = (edge - 1) / 2;
    statistics += (size_t)blockIdx.y * edge * edge * width * 3;
    const float* p = statistics + 3 * (((size_t)(centre + z) * edge + centre + y) * width + x);
    float re = p[0], im = p[1], d = p[2];
    if (x == 0) {
        const float* q = statistics + 3 * (((size_t)(centre - z) * edge + centre - y) * width);
        re += q[0];
        im -= q[1];
        d += q[2];
    }
    float* out = crops + 3 * ((size_t)blockIdx.y * g * g * (reach + 1) + at);
    out[0] = re;
    out[1] = im;
    out[2] = d;
}

// Grid: (enough threads for a crop's voxels, 2 K). Mean over operators (m, 9) of the crop at M k,
// within the sphere of radius reach.
extern "C" __global__ void average_crops(const float* crops, int reach, const float* operators,
                                         int m, float* out) {
    int g = 2 * reach + 1, voxels = g * g * (reach + 1);
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= voxels) return;
    int x = at % (reach + 1), y = at / (reach + 1) % g - reach, z = at / (reach + 1) / g - reach;
    const float* crop = crops + 3 * (size_t)blockIdx.y * voxels;
    float total[3] = {};
    if (x * x + y * y + z * z <= reach * reach) {
        float top = (float)(g - 1) - 1e-3f;  // the far corner must exist
        for (int i = 0; i < m; ++i) {
            const float* a = operators + 9 * i;
            float p[3];
            int low[3];
            for (int row = 0; row < 3; ++row) {
                float value = a[3 * row] * x + a[3 * row + 1] * y + a[3 * row + 2] * z + reach;
                value = fminf(fmaxf(value, 0.0f), top);
                low[row] = (int)value;
                p[row] = value - low[row];
            }
            for (int d = 0; d < 8; ++d) {
                int cx = low[0] + (d & 1) - reach, cy = low[1] + (d >> 1 & 1) - reach;
                int cz = low[2] + (d >> 2) - reach, sign = cx < 0 ? -1 : 1;
                float share = (d & 1 ? p[0] : 1.0f - p[0]) * (d & 2 ? p[1] : 1.0f - p[1]) *
                              (d & 4 ? p[2] : 1.0f - p[2]);
                const float* q = crop + 3 * (((size_t)(sign * cz + reach) * g + sign * cy + reach) *
                                                 (reach + 1) +
                                             sign * cx);
                total[0] += share * q[0];
                total[1] += share * sign * q[1];
                total[2] += share * q[2];
            }
        }
    }
    float* to = out + 3 * ((size_t)blockIdx.y * voxels + at);
    for (int c = 0; c < 3; ++c) to[c] = total[c] / m;
}

// Grid: (shells, 2 K). Sum of D over each shell, voxels in the order of a table sorted by shell.
extern "C" __global__ void shell_weights(const float* crops, int voxels, const int* order,
                                         const int* starts, double* sums) {
    __shared__ double room[1024];
    const float* crop = crops + 3 * (size_t)blockIdx.y * voxels;
    double total = 0.0;
    for (int e = starts[blockIdx.x] + threadIdx.x; e < starts[blockIdx.x + 1]; e += blockDim.x)
        total += crop[3 * (size_t)order[e] + 2];
    total = block_sum(total, room);
    if (threadIdx.x == 0) sums[(size_t)blockIdx.y * gridDim.x + blockIdx.x] = total;
}

// 1 / tau^2 of shell s: its mean D times noise over signal, and enough to divide by.
__device__ __forceinline__ float ridge_of(const double* first, const double* second,
                                          const double* counts, int shells,
                                          const float* noise_over_signal, int s) {
    double most = 0.0;
    for (int e = 0; e < shells; ++e)
        most = fmax(most, (first[e] + (second ? second[e] : 0.0)) / counts[e]);
    double mean = (first[s] + (second ? second[s] : 0.0)) / counts[s];
    return (float)(mean * noise_over_signal[s] + 1e-6 * most + 1e-20);
}

// Grid: (maps, 2). ridges (maps, 2, radius + 1): of the map's own half-set and of both.
extern "C" __global__ void shell_ridges(const double* sums, const double* counts, int shells,
                                        int classes, int radius, const float* noise_over_signal,
                                        float* ridges) {
    int half = blockIdx.x / classes, k = blockIdx.x % classes;
    const double* own = sums + ((size_t)half * classes + k) * shells;
    const double* other = sums + ((size_t)(1 - half) * classes + k) * shells;
    const float* wanted = noise_over_signal + ((size_t)blockIdx.y * classes + k) * (radius + 1);
    float* out = ridges + ((size_t)blockIdx.x * 2 + blockIdx.y) * (radius + 1);
    for (int s = threadIdx.x; s <= radius; s += blockDim.x)
        out[s] = ridge_of(own, blockIdx.y ? other : 0, counts, shells, wanted, s);
}

// Grid: (enough threads for a spectrum, maps). Wiener quotients N / (D + ridge), zero beyond radius:
// of both half-sets up to the shell join, of the map's own beyond it. Map m is of half-set m / K.
extern "C" __global__ void fill_spectra(const float* crops, int reach, int classes, int size,
                                        int radius, int join, float scale, const float* ridges,
                                        float2* spectra) {
    int width = size / 2 + 1, at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= size * size * width) return;
    int x = at % width, y = at / width % size, z = at / width / size;
    if (y > size / 2) y -= size;
    if (z > size / 2) z -= size;
    float2 value = make_float2(0.0f, 0.0f);
    int shell = (int)floorf(sqrtf((float)(x * x + y * y + z * z)) / scale + 0.5f);
    if (shell <= radius && x <= reach && abs(y) <= reach && abs(z) <= reach) {
        int g = 2 * reach + 1, half = blockIdx.y / classes, k = blockIdx.y % classes;
        size_t voxels = (size_t)g * g * (reach + 1);
        size_t place = 3 * (((size_t)(z + reach) * g + y + reach) * (reach + 1) + x);
        const float* own = crops + 3 * voxels * (half * classes + k) + place;
        const float* ridge = ridges + (size_t)blockIdx.y * 2 * (radius + 1);
        float re = own[0], im = own[1], d = own[2];
        bool both = shell <= join;
        if (both) {
            const float* other = crops + 3 * voxels * ((1 - half) * classes + k) + place;
            re += other[0];
            im += other[1];
            d += other[2];
        }
        float gain = 1.0f / (d + ridge[(both ? radius + 1 : 0) + shell]);
        value = make_float2(re * gain, im * gain);
    }
    spectra[(size_t)blockIdx.y * size * size * width + at] = value;
}

// Grid: (enough threads for a map, maps). Window with its origin at voxel 0: 1 within the class's
// radius, falling as a cosine over edge; the decay of interpolation divided out power times, and the
// size^3 of an inverse transform without a norm.
extern "C" __global__ void window_maps(float* maps, int size, int classes, float spacing,
                                       const float* radii, float edge, const float* decay,
                                       int power) {
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= size * size * size) return;
    int place[3] = {at % size, at / size % size, at / size / size};
    float squared = 0.0f, cube = 1.0f;
    for (int axis = 0; axis < 3; ++axis) {
        int p = place[axis] < size - size / 2 ? place[axis] : place[axis] - size;
        squared += (float)p * p;
        for (int e = 0; e < power; ++e) cube *= decay[p + size / 2];
    }
    float fall = (sqrtf(squared) * spacing - radii[blockIdx.y % classes]) / edge;
    fall = fminf(fmaxf(fall, 0.0f), 1.0f);
    float mask = fall < 1.0f ? 0.5f + 0.5f * cosf(3.14159265f * fall) : 0.0f;
    float norm = (float)size * size * size;
    maps[(size_t)blockIdx.y * size * size * size + at] *= mask / (fmaxf(cube, 1e-3f) * norm);
}

// Grid: (enough threads for a cube, maps). cubes (maps, g, g, g): a spectrum's low part, whole, each
// value with its neighbour along x (0 beyond the last).
extern "C" __global__ void gather_cubes(const float2* spectra, int size, int reach, float4* cubes) {
    int g = 2 * reach + 1, at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= g * g * g) return;
    int y = at / g % g - reach, z = at / g / g - reach;
    spectra += (size_t)blockIdx.y * size * size * (size / 2 + 1);
    float2 values[2] = {};
    for (int d = 0; d < 2; ++d) {
        int x = at % g - reach + d, sign = x < 0 ? -1 : 1;
        if (x > reach) continue;
        values[d] = spectra[wrapped(sign * z, sign * y, sign * x, size)];
        values[d].y *= sign;
    }
    cubes[(size_t)blockIdx.y * g * g * g + at] =
        make_float4(values[0].x, values[0].y, values[1].x, values[1].y);
}

// Grid: (shells, K). Spectra (2 K, ...) of half maps. sums (K, 3, shells): cross term and powers.
extern "C" __global__ void compare_shells(const float2* spectra, int size, int reach, int classes,
                                          const int* order, const int* starts, double* sums) {
    __shared__ double room[1024];
    int g = 2 * reach + 1;
    size_t edge = (size_t)size * size * (size / 2 + 1);
    const float2* first = spectra + blockIdx.y * edge;
    const float2* second = first + classes * edge;
    double cross = 0.0, one = 0.0, other = 0.0;
    for (int e = starts[blockIdx.x] + threadIdx.x; e < starts[blockIdx.x + 1]; e += blockDim.x) {
        int at = order[e], x = at % (reach + 1);
        size_t place = wrapped(at / (reach + 1) / g - reach, at / (reach + 1) % g - reach, x, size);
        float2 a = first[place], b = second[place];
        double weight = x ? 2.0 : 1.0;
        cross += weight * ((double)a.x * b.x + (double)a.y * b.y);
        one += weight * ((double)a.x * a.x + (double)a.y * a.y);
        other += weight * ((double)b.x * b.x + (double)b.y * b.y);
    }
    double* out = sums + (size_t)blockIdx.y * 3 * gridDim.x + blockIdx.x;
    cross = block_sum(cross, room);
    one = block_sum(one, room);
    other = block_sum(other, room);
    if (threadIdx.x == 0) {
        out[0] = cross;
        out[gridDim.x] = one;
        out[2 * gridDim.x] = other;
    }
}
