// Runs CUDA C on the host, one fiber per thread, so that the kernels' text can be tested without a
// device. A block's threads run one after another until each waits at a barrier; blocks run one
// after another. The order of threads is a choice (emu_order): results that change with it have a
// race. Covers what our kernels use, nothing more.
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

using std::max;
using std::min;

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __restrict__
#define __launch_bounds__(...)

struct float2 {
    float x, y;
};
static inline float2 make_float2(float x, float y) { return float2{x, y}; }
struct float4 {
    float x, y, z, w;
};
static inline float4 make_float4(float x, float y, float z, float w) { return float4{x, y, z, w}; }
struct uint4 {
    unsigned x, y, z, w;
};
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
    return uint4{x, y, z, w};
}

struct Dim {
    unsigned x, y, z;
};
static Dim threadIdx, blockIdx, blockDim, gridDim;

static const size_t SHARED_BYTES = 228 << 10;  // of one H100 or H200 multiprocessor
alignas(16) static unsigned char shared_room[SHARED_BYTES];
static const unsigned GUARD = 0xa5;

struct Fiber {
    ucontext_t context;  // only to begin on the fiber's own stack
    jmp_buf place;       // where it waits: jumps need no system call
    std::vector<unsigned char> stack;
    bool started, finished;
};
static std::vector<Fiber> fibers;
static jmp_buf scheduler;
static int current;
static void (*body)(void*);
static void* body_arguments;

struct Barrier {
    unsigned arrived = 0, generation = 0;
};
static Barrier block_barrier, warp_barrier[32];
static unsigned exchange[1024];

static __attribute__((noinline)) void pause_fiber() {
    if (!_setjmp(fibers[current].place)) _longjmp(scheduler, 1);
}

static __attribute__((noinline)) void resume_fiber(int thread) {
    Fiber& fiber = fibers[thread];
    current = thread;
    threadIdx.x = thread;
    if (_setjmp(scheduler)) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    setcontext(&fiber.context);
}

static void wait_at(Barrier& barrier, unsigned size) {
    unsigned generation = barrier.generation;
    if (++barrier.arrived == size) {
        barrier.arrived = 0;
        ++barrier.generation;
        return;
    }
    while (barrier.generation == generation) pause_fiber();
}

static void __syncthreads() { wait_at(block_barrier, blockDim.x); }
static void __syncwarp() { wait_at(warp_barrier[threadIdx.x / 32], 32); }

static unsigned shuffle_bits(unsigned bits, int mask) {
    int me = threadIdx.x;
    exchange[me] = bits;
    wait_at(warp_barrier[me / 32], 32);
    unsigned other = exchange[me ^ mask];
    wait_at(warp_barrier[me / 32], 32);
    return other;
}

static float __uint_as_float(unsigned bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
static unsigned __float_as_uint(float value) {
    unsigned bits;
    memcpy(&bits, &value, 4);
    return bits;
}
static float __shfl_xor_sync(unsigned, float value, int mask) {
    return __uint_as_float(shuffle_bits(__float_as_uint(value), mask));
}
// The nearest bfloat16, ties to even, as 16 bits.
static unsigned host_bfloat(float value) {
    unsigned bits = __float_as_uint(value);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
static float low_half(unsigned pair) { return __uint_as_float(pair << 16); }
static float high_half(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }

// mma.sync.m16n8k16: which lane holds which part of the factors and of the sums is in the PTX manual.
static unsigned fragments[1024][6];
static void host_tensor_product(float* c, const unsigned* a, unsigned b0, unsigned b1) {
    int me = threadIdx.x, warp = me / 32 * 32, group = me % 32 / 4, member = me % 4;
    unsigned* own = fragments[me];
    for (int i = 0; i < 4; ++i) own[i] = a[i];
    own[4] = b0;
    own[5] = b1;
    wait_at(warp_barrier[me / 32], 32);
    for (int part = 0; part < 4; ++part) {
        int row = part / 2, column = 2 * member + part % 2;
        for (int q = 0; q < 4; ++q) {
            const unsigned* left = fragments[warp + 4 * group + q];
            const unsigned* right = fragments[warp + 4 * column + q];
            for (int half = 0; half < 2; ++half) {
                unsigned x = left[row + 2 * half], y = right[4 + half];
                c[part] += low_half(x) * low_half(y) + high_half(x) * high_half(y);
            }
        }
    }
    wait_at(warp_barrier[me / 32], 32);
}
template <class T>
static T atomicAdd(T* at, T value) {
    T before = *at;
    *at = before + value;
    return before;
}
template <class T>
static T atomicMax(T* at, T value) {
    T before = *at;
    if (value > before) *at = value;
    return before;
}

static void fiber_main() {
    body(body_arguments);
    fibers[current].finished = true;
    for (;;) pause_fiber();
}

static const size_t STACK_BYTES = 64 << 10;
static int order_seed = 0;  // 0: ascending, 1: descending, else a shuffle

extern "C" void emu_order(int seed) { order_seed = seed; }

static std::vector<int> thread_order(unsigned threads) {
    std::vector<int> order(threads);
    for (unsigned i = 0; i < threads; ++i) order[i] = order_seed == 1 ? threads - 1 - i : i;
    if (order_seed > 1) {
        unsigned state = order_seed * 2654435761u + blockIdx.x;
        for (unsigned i = threads - 1; i > 0; --i) {
            state = state * 1664525u + 1013904223u;
            std::swap(order[i], order[(state >> 8) % (i + 1)]);
        }
    }
    return order;
}

static void run_block(unsigned threads) {
    if (fibers.size() < threads) fibers.resize(threads);
    for (unsigned t = 0; t < threads; ++t) {
        Fiber& fiber = fibers[t];
        fiber.started = fiber.finished = false;
        if (fiber.stack.empty()) fiber.stack.resize(STACK_BYTES);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = STACK_BYTES;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, fiber_main, 0);
    }
    std::vector<int> order = thread_order(threads);
    for (bool running = true; running;) {
        running = false;
        for (int t : order) {
            if (fibers[t].finished) continue;
            running = true;
            resume_fiber(t);
        }
    }
}

template <class... A, size_t... I>
static void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*(typename std::remove_cv<A>::type*)arguments[I]...);
}

template <class... A>
struct Kernel {
    void (*kernel)(A...);
    void** arguments;
    static void enter(void* self) {
        Kernel* it = (Kernel*)self;
        call(it->kernel, it->arguments, std::index_sequence_for<A...>{});
    }
};

// Returns 0, or 1 where a block wrote beyond the shared memory that it asked for.
template <class... A>
static int run_grid(void (*kernel)(A...), unsigned gx, unsigned gy, unsigned threads, size_t shared,
                    void** arguments, int count) {
    if (count != (int)sizeof...(A)) return 2;
    if (shared + 256 > SHARED_BYTES) return 3;
    Kernel<A...> it{kernel, arguments};
    body = Kernel<A...>::enter;
    body_arguments = &it;
    gridDim = Dim{gx, gy, 1};
    blockDim = Dim{threads, 1, 1};
    for (blockIdx.y = 0; blockIdx.y < gy; ++blockIdx.y) {
        for (blockIdx.x = 0; blockIdx.x < gx; ++blockIdx.x) {
            memset(shared_room, 0xcd, shared);  // shared memory starts with anything
            memset(shared_room + shared, GUARD, 256);
            run_block(threads);
            for (int i = 0; i < 256; ++i)
                if (shared_room[shared + i] != GUARD) return 1;
        }
    }
    return 0;
}
