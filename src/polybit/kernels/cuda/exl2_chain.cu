// Products of a few rows that follow one another, in one launch: what stands between them costs a meeting of all thread
// blocks, and while they meet the next product's weights are on their way.
//
// Each link sorts its input (activations.cuh), the blocks meet, it multiplies (product.cuh), the blocks meet. Links that
// add to the residual stream write it; links that begin with a norm read it; the others read what the one before wrote.
// One thread block a multiprocessor, all at work at once: a cooperative launch.
//
// Compile-time: as product.cuh, and RESIDUAL, the kind of the residual stream (activations.cuh), 0 or 2.

#include "activations.cuh"
#include "overlap.cuh"
#include "product.cuh"

typedef Number<RESIDUAL>::Type Residual;

enum Start : u32 { SORT, NORM, GATE };  // as START in chain.py

struct Link {  // as LINK in chain.py
    Product product;
    const int* order;           // the feature at each sorted row
    const InputGroup* groups;
    const u16* weight;          // of the norm, [width] fp16
    const u16* bias;            // [out_stride] fp16; null: none
    u32 num_groups;
    u32 start;
    u32 activation;             // of the gate
    u32 width;                  // features of the input
    float eps, offset;          // of the norm
    u32 out_stride;
    u32 adds;                   // to the residual stream
    u32 place;                  // of its output in `between`, in elements a token, where it does not add
    u32 input;                  // of its input there, where it has no norm and is not the first
};

// ---- meetings

__device__ __forceinline__ void order_copies_after_stores() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async;" ::: "memory");
#endif
}

__device__ __forceinline__ u32 acquired(const u32* address) {
    u32 value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
    return value;
}

// All thread blocks wait for each other; what they wrote before can be read after. The top bit of `meeting` turns over
// each time, so that it is ready for the next.
__device__ __forceinline__ void meet(u32* meeting) {
    order_copies_after_stores();
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        const u32 before = atomicAdd(meeting, blockIdx.x == 0 ? 0x80000000u - (gridDim.x - 1) : 1u);
        while (((acquired(meeting) ^ before) & 0x80000000u) == 0) {}
    }
    __syncthreads();
    order_copies_after_stores();
}

// ---- inputs

// x [width], 16-byte aligned: the sum of squares, known to the whole thread block.
__device__ __forceinline__ float sum_of_squares(const Residual* x, u32 width) {
    __shared__ float sums[WARPS];
    constexpr u32 AT_ONCE = 16 / sizeof(Residual);
    float sum = 0.f;
    for (u32 i = threadIdx.x * AT_ONCE; i < width; i += 32 * WARPS * AT_ONCE) {
        Residual values[AT_ONCE];
        *reinterpret_cast<uint4*>(values) = *reinterpret_cast<const uint4*>(x + i);
#pragma unroll
        for (u32 k = 0; k < AT_ONCE; ++k) {
            const float value = Number<RESIDUAL>::read(values[k]);
            sum += value * value;
        }
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
    __syncthreads();
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) sum += sums[w];
    return sum;
}

// The thread block's share of a link's groups and tokens, token after token.
struct Tasks {
    u32 first, stop;

    __device__ __forceinline__ Tasks(u32 num_groups, u32 num_tokens) {
        const u32 all = num_groups * num_tokens, share = (all + gridDim.x - 1) / gridDim.x;
        first = min(blockIdx.x * share, all);
        stop = min(first + share, all);
    }
};

// f(token) gives a function from feature to value; it may wait for the whole thread block.
template <typename F>
__device__ __forceinline__ void sort_share(const Link& link, char* sorted, u32 num_tokens, F f) {
    const u32 num_groups = link.num_groups;
    const Tasks tasks(num_groups, num_tokens);
    for (u32 token = tasks.first / num_groups; token * num_groups < tasks.stop; ++token) {
        const auto value_at = f(token);
        const u32 first = max(tasks.first, token * num_groups), stop = min(tasks.stop, (token + 1) * num_groups);
        for (u32 task = first + threadIdx.x / 32; task < stop; task += WARPS) {
            const u32 group = task - token * num_groups;
            sort(find_place(link.order, link.groups, group), group, token, sorted, num_tokens, value_at);
        }
    }
}

// given [num_tokens, inputs of the link]: a gate's beside what it gates.
__device__ __forceinline__ void sort_input(
    const Link& link, const u16* given, const Residual* residual, char* sorted, u32 num_tokens
) {
    const u32 width = link.width;
    if (link.start == NORM) {
        const u16* weight = link.weight;
        const float eps = link.eps, offset = link.offset;
        sort_share(link, sorted, num_tokens, [&](u32 token) {
            const Residual* row = residual + static_cast<u64>(token) * width;
            const float scale = rsqrtf(sum_of_squares(row, width) / static_cast<float>(width) + eps);
            return [=](int i) { return Number<RESIDUAL>::read(row[i]) * scale * (low_half(weight[i]) + offset); };
        });
    } else if (link.start == GATE) {
        const u32 activation = link.activation;
        sort_share(link, sorted, num_tokens, [&](u32 token) {
            const u16* gate = given + static_cast<u64>(token) * 2 * width;
            return [=](int i) { return activate(low_half(gate[i]), activation) * low_half(gate[width + i]); };
        });
    } else {
        sort_share(link, sorted, num_tokens, [&](u32 token) {
            const u16* row = given + static_cast<u64>(token) * width;
            return [=](int i) { return low_half(row[i]); };
        });
    }
}

// first [num_tokens, inputs of the first link]; x the residual stream, new_x what it becomes; `between` room for the other
// links' outputs, `sorted` for a link's sorted input.
extern "C" __global__ void __launch_bounds__(32 * WARPS, 1) exl2_chain(
    const Link* links, u32 num_links, const u16* first, const Residual* x, Residual* new_x, u16* between, char* sorted,
    float* meeting_sums, u32* meeting_counters, u32* meeting, u32 num_tokens
) {
    extern __shared__ __align__(128) char memory[];
    __shared__ __align__(8) u64 barriers[WARPS * SLOTS];
    float* sums = reinterpret_cast<float*>(memory + WARPS * RING_BYTES);
    if (ONE) num_tokens = 1;
    Pipeline pipeline;
    pipeline.place(memory, barriers);
    let_next_grid_start();
    pipeline.ask_for_weights(links[0].product, num_tokens, false);
    wait_for_previous_grid();
#pragma unroll 1
    for (u32 i = 0;; ++i) {
        const Link& link = links[i];
        const u16* given = i == 0 ? first : between + static_cast<u64>(link.input) * num_tokens;
        sort_input(link, given, x, sorted, num_tokens);
        meet(meeting);
        const Product product = link.product;
        pipeline.ask_for_inputs(product, sorted, num_tokens);
        pipeline.multiply(product, sums, num_tokens);
        if (i + 1 < num_links) pipeline.ask_for_weights(links[i + 1].product, num_tokens, true);
        const Output output = link.adds
            ? Output{new_x, x, link.bias, link.out_stride, RESIDUAL == 2}
            : Output{between + static_cast<u64>(link.place) * num_tokens, nullptr, link.bias, link.out_stride, false};
        finish(product, sums, {meeting_sums, meeting_counters}, output, num_tokens);
        if (link.adds) x = new_x;
        if (i + 1 == num_links) break;
        meet(meeting);
    }
}
