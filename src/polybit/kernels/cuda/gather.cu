// Activations of prompts in the order of a matrix's rows. A thread block works out the features of its tokens into shared
// memory, rounds them once, and writes them from there in the other order: whole lines both times.
//
// IN, WEIGHT: types of activations and of a norm's weight, as in numbers.cuh; OUT: of what is written, fp16 or bf16.
// TOKENS: of a thread block, 1 or 2; shared memory holds two bytes for each and feature.

#include "activate.cuh"
#include "numbers.cuh"

typedef Number<IN>::Type In;
typedef Number<WEIGHT>::Type Weight;

extern __shared__ uint4 features[];  // two tokens: pairs of them, feature after feature

__device__ __forceinline__ u32 lows(u32 a, u32 b) { return __byte_perm(a, b, 0x5410); }
__device__ __forceinline__ u32 highs(u32 a, u32 b) { return __byte_perm(a, b, 0x7632); }

// The thread block's tokens; past the last one, that again.
__device__ __forceinline__ u32 token_at(int t, u32 num_tokens) { return min(TOKENS * blockIdx.x + t, num_tokens - 1); }

// f(t, i, values) gives eight features from i on of the t-th token.
template <typename F>
__device__ __forceinline__ void stage(u32 width, F f) {
    for (u32 i = 8 * threadIdx.x; i < width; i += 8 * blockDim.x) {
        u32 pairs[TOKENS][4];
#pragma unroll
        for (int t = 0; t < TOKENS; ++t) {
            float values[8];
            f(t, i, values);
#pragma unroll
            for (int j = 0; j < 4; ++j) pairs[t][j] = pack_pair<OUT>(values[2 * j], values[2 * j + 1]);
        }
        const u32(&a)[4] = pairs[0], (&b)[4] = pairs[TOKENS - 1];
        if constexpr (TOKENS == 1) {
            features[i / 8] = {a[0], a[1], a[2], a[3]};
        } else {
            features[i / 4] = {lows(a[0], b[0]), highs(a[0], b[0]), lows(a[1], b[1]), highs(a[1], b[1])};
            features[i / 4 + 1] = {lows(a[2], b[2]), highs(a[2], b[2]), lows(a[3], b[3]), highs(a[3], b[3])};
        }
    }
    __syncthreads();
}

// Features order[0], order[1], .. of each token, to out [num_tokens, width].
__device__ __forceinline__ void write_sorted(const int* order, u16* out, u32 width, u32 num_tokens) {
    for (u32 i = 8 * threadIdx.x; i < width; i += 8 * blockDim.x) {
        const uint4 near = load_16(order + i), far = load_16(order + i + 4);
        const u32 from[8] = {near.x, near.y, near.z, near.w, far.x, far.y, far.z, far.w};
        u32 first[4], second[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            if constexpr (TOKENS == 1) {
                const u16* halves = reinterpret_cast<const u16*>(features);
                first[j] = halves[from[2 * j]] | static_cast<u32>(halves[from[2 * j + 1]]) << 16;
            } else {
                const u32* pairs = reinterpret_cast<const u32*>(features);
                const u32 a = pairs[from[2 * j]], b = pairs[from[2 * j + 1]];
                first[j] = lows(a, b), second[j] = highs(a, b);
            }
        }
        const u32 token = TOKENS * blockIdx.x;
        u16* to = out + static_cast<u64>(token) * width + i;
        store_16(true, to, first[0], first[1], first[2], first[3]);
        if constexpr (TOKENS == 2)
            store_16(token + 1 < num_tokens, to + width, second[0], second[1], second[2], second[3]);
    }
}

// x [num_tokens, x_stride]; order [width] int32, a multiple of 8. Grid (num_tokens / TOKENS).
extern "C" __global__ void gather_rows(const int* order, u16* out, u32 width, u32 num_tokens, const In* x, u32 x_stride) {
    stage(width, [&](int t, u32 i, float (&values)[8]) {
        read_eight<IN>(x + static_cast<u64>(token_at(t, num_tokens)) * x_stride + i, values);
    });
    write_sorted(order, out, width, num_tokens);
}

// Of every thread, added up in an order that is always the same; on all threads.
__device__ __forceinline__ void add_up(float (&sums)[TOKENS]) {
    __shared__ float parts[TOKENS][32];
    const u32 lane = threadIdx.x % 32;
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) {
#pragma unroll
        for (int step = 16; step > 0; step /= 2) sums[t] += __shfl_xor_sync(0xffffffff, sums[t], step);
        if (lane == 0) parts[t][threadIdx.x / 32] = sums[t];
    }
    __syncthreads();
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) {
        sums[t] = lane < blockDim.x / 32 ? parts[t][lane] : 0.f;
#pragma unroll
        for (int step = 16; step > 0; step /= 2) sums[t] += __shfl_xor_sync(0xffffffff, sums[t], step);
    }
}

// The same of RMSNorm (arXiv 1910.07467): x / sqrt(mean(x^2) + eps) * (weight + offset); weight [width].
extern "C" __global__ void gather_normed(
    const int* order, u16* out, u32 width, u32 num_tokens, const In* x, u32 x_stride, const Weight* weight, float eps,
    float offset
) {
    const In* rows[TOKENS];
    float scales[TOKENS] = {};
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) rows[t] = x + static_cast<u64>(token_at(t, num_tokens)) * x_stride;
    for (u32 i = 8 * threadIdx.x; i < width; i += 8 * blockDim.x) {
#pragma unroll
        for (int t = 0; t < TOKENS; ++t) {
            float values[8];
            read_eight<IN>(rows[t] + i, values);
#pragma unroll
            for (int j = 0; j < 8; ++j) scales[t] += values[j] * values[j];
        }
    }
    add_up(scales);
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) scales[t] = rsqrtf(scales[t] / static_cast<float>(width) + eps);
    stage(width, [&](int t, u32 i, float (&values)[8]) {
        float weights[8];
        read_eight<IN>(rows[t] + i, values);
        read_eight<WEIGHT>(weight + i, weights);
#pragma unroll
        for (int j = 0; j < 8; ++j) values[j] = values[j] * scales[t] * (weights[j] + offset);
    });
    write_sorted(order, out, width, num_tokens);
}

template <int activation>
__device__ __forceinline__ void stage_gated(
    u32 width, u32 num_tokens, const In* gate, u32 gate_stride, const In* up, u32 up_stride
) {
    stage(width, [&](int t, u32 i, float (&values)[8]) {
        const u64 token = token_at(t, num_tokens);
        float ups[8];
        read_eight<IN>(gate + token * gate_stride + i, values);
        read_eight<IN>(up + token * up_stride + i, ups);
#pragma unroll
        for (int j = 0; j < 8; ++j) values[j] = activate<activation>(values[j]) * ups[j];
    });
}

// The same of act(gate) * up, both [num_tokens, stride]; activation as in activate.cuh.
extern "C" __global__ void gather_gated(
    const int* order, u16* out, u32 width, u32 num_tokens, const In* gate, u32 gate_stride, const In* up, u32 up_stride,
    u32 activation
) {
    switch (activation) {
        case 0: stage_gated<0>(width, num_tokens, gate, gate_stride, up, up_stride); break;
        case 1: stage_gated<1>(width, num_tokens, gate, gate_stride, up, up_stride); break;
        case 2: stage_gated<2>(width, num_tokens, gate, gate_stride, up, up_stride); break;
        default: stage_gated<3>(width, num_tokens, gate, gate_stride, up, up_stride); break;
    }
    write_sorted(order, out, width, num_tokens);
}
