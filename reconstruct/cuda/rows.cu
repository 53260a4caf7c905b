// One row per particle: CTF, weighting, background, sums over shells.

// -sin(chi) with the phase reduced in double precision: it reaches hundreds of radians.
__device__ __forceinline__ float ctf_value(const double* u, float kx, float ky, double step) {
    // u: defocus u and v, angle, phase shift, wavelength, spherical aberration, amplitude contrast
    double mean = 0.5 * (u[0] + u[1]), half = 0.5 * (u[0] - u[1]), wavelength = u[4];
    double x = kx, y = ky, k2 = x * x + y * y;
    double dz = mean * k2 + half * (cos(2 * u[2]) * (x * x - y * y) + sin(2 * u[2]) * 2 * x * y);
    double linear = 0.5 * TWO_PI * wavelength * step * step;
    double quartic = 0.25 * TWO_PI * u[5] * wavelength * wavelength * wavelength * step * step *
                     step * step;
    double chi = quartic * k2 * k2 - linear * dz - u[3] - atan(u[6] / sqrt(1 - u[6] * u[6]));
    chi -= TWO_PI * rint(chi / TWO_PI);
    return -sinf((float)chi);
}

// Grid: one block per particle. Takes spectra out of the store's segments (2^shift rows of width
// coefficients each) and weighs them: C X / noise and C^2 / noise. places (2, b): where a particle's
// spectrum is, and its row in parameters and group. variance (groups, n).
extern "C" __global__ void weigh_rows(const u64* segments, int shift, int width,
                                      const long long* places, const double* parameters,
                                      const int* group, const float* variance, const float* kx,
                                      const float* ky, double step, int n, float* a_re, float* a_im,
                                      float* c2) {
    size_t i = blockIdx.x;
    long long place = places[i], row = places[gridDim.x + i], mask = ((long long)1 << shift) - 1;
    const float2* spectrum =
        (const float2*)segments[place >> shift] + (size_t)(place & mask) * width;
    const float* noise = variance + (size_t)group[row] * n;
    for (int j = threadIdx.x; j < n; j += blockDim.x) {
        float ctf = ctf_value(parameters + 7 * row, kx[j], ky[j], step);
        float weighted = ctf / noise[j];
        a_re[i * n + j] = spectrum[j].x * weighted;
        a_im[i * n + j] = spectrum[j].y * weighted;
        c2[i * n + j] = ctf * weighted;
    }
}

// Grid: one block per image of pixels values; outside marks the background.
extern "C" __global__ void normalise_images(const float* images, const unsigned char* outside,
                                            int pixels, float* out) {
    __shared__ double room[1024];
    const float* source = images + (size_t)blockIdx.x * pixels;
    float* target = out + (size_t)blockIdx.x * pixels;
    double total = 0.0, count = 0.0, square = 0.0;
    for (int p = threadIdx.x; p < pixels; p += blockDim.x) {
        if (!outside[p]) continue;
        total += source[p];
        count += 1.0;
    }
    count = block_sum(count, room);
    double mean = block_sum(total, room) / count;
    for (int p = threadIdx.x; p < pixels; p += blockDim.x)
        if (outside[p]) square += (source[p] - mean) * (source[p] - mean);
    double deviation = sqrt(block_sum(square, room) / count);
    double gain = deviation > 0.0 ? 1.0 / deviation : 1.0;
    for (int p = threadIdx.x; p < pixels; p += blockDim.x)
        target[p] = (float)((source[p] - mean) * gain);
}

// Grid: one block per particle of n coefficients; shell s + 1 holds those from starts[s] to
// starts[s + 1]. out (b, 3, shells): sums of C^2 / noise, of its square, of |A|^2.
extern "C" __global__ void shell_sums(const float* a_re, const float* a_im, const float* c2, int n,
                                      const int* starts, int shells, float* out) {
    size_t i = blockIdx.x;
    for (int s = threadIdx.x; s < shells; s += blockDim.x) {
        double transfer = 0.0, square = 0.0, power = 0.0;
        for (int j = starts[s]; j < starts[s + 1]; ++j) {
            double value = c2[i * n + j], re = a_re[i * n + j], im = a_im[i * n + j];
            transfer += value;
            square += value * value;
            power += re * re + im * im;
        }
        out[(3 * i) * shells + s] = (float)transfer;
        out[(3 * i + 1) * shells + s] = (float)square;
        out[(3 * i + 2) * shells + s] = (float)power;
    }
}
