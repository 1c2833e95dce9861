// Activations of many rows in the order of a matrix's rows. A thread block works out the features of its tokens into shared
// memory, rounds them once, and writes them from there in the other order: whole lines both times.
//
// IN, WEIGHT: types of activations and of a norm's weight, as in numbers.cuh; OUT: of what is written, fp16 or bf16.
// TOKENS: of a thread block, 1 or 2; shared memory holds two bytes for each and feature. FORM: how sorted features lie.
//   0: [token][feature], for dense products
//   1: [feature / 32][token][32], for exl2_batch.cu
//   2: [feature / 32][4][token / 8][token % 8][8], the core matrices of exl2_warpgroup.cu: part j of a block has rows
//      2 j, 2 j + 1, 8 + 2 j, 8 + 2 j + 1, .., which are those of one lane after another (see stream.py)

#include "activate.cuh"
#include "numbers.cuh"
#include "overlap.cuh"

typedef Number<IN>::Type In;
typedef Number<WEIGHT>::Type Weight;

extern __shared__ uint4 features[];  // two tokens: pairs of them, feature after feature

// Which eights of sorted features a thread writes: thread blocks of one token share the work.
__device__ __forceinline__ u32 first_eight() { return blockDim.x * blockIdx.y + threadIdx.x; }
__device__ __forceinline__ u32 next_eight() { return blockDim.x * gridDim.y; }

// Returns when what earlier launches wrote can be read. A product of few rows waits for this launch, so what nobody writes
// is asked for before; for many rows all of it is in the cache already.
__device__ __forceinline__ void begin(const int* order, u32 num_sorted, const Weight* weight, u32 width) {
    let_next_grid_start();
    if constexpr (FORM != 0) {
        for (u32 i = first_eight(); i < num_sorted / 8; i += next_eight()) prefetch(order + 8 * i);
        if (weight != nullptr) {
            for (u32 i = 8 * threadIdx.x; i < width; i += 8 * blockDim.x) prefetch(weight + i);
        }
    }
    wait_for_previous_grid();
}

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

// Eight sorted features that lie together, the i-th such, of `order`.
__device__ __forceinline__ void features_of(const int* order, u32 i, u32 (&from)[8]) {
    if constexpr (FORM == 2) {
        const int* first = order + i / 4 * 32 + 2 * (i % 4);
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            const uint2 two = load_8(first + 8 * c);
            from[2 * c] = two.x, from[2 * c + 1] = two.y;
        }
    } else {
        const uint4 near = load_16(order + 8 * i), far = load_16(order + 8 * i + 4);
        const u32 all[8] = {near.x, near.y, near.z, near.w, far.x, far.y, far.z, far.w};
#pragma unroll
        for (int j = 0; j < 8; ++j) from[j] = all[j];
    }
}

// Where they go, in eights.
__device__ __forceinline__ u64 place_of(u32 i, u32 token, u32 num_sorted, u32 num_tokens) {
    if constexpr (FORM == 0) return static_cast<u64>(token) * (num_sorted / 8) + i;
    if constexpr (FORM == 1) return static_cast<u64>(i / 4 * num_tokens + token) * 4 + i % 4;
    return static_cast<u64>(i) * ((num_tokens + 7) / 8 * 8) + token;
}

// Features order[0], order[1], .. of each token to out.
__device__ __forceinline__ void write_sorted(const int* order, uint4* out, u32 num_sorted, u32 num_tokens) {
    for (u32 i = first_eight(); i < num_sorted / 8; i += next_eight()) {
        u32 from[8], first[4], second[4];
        features_of(order, i, from);
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
        store_16(true, out + place_of(i, token, num_sorted, num_tokens), first[0], first[1], first[2], first[3]);
        if constexpr (TOKENS == 2) {
            uint4* to = out + place_of(i, token + 1, num_sorted, num_tokens);
            store_16(token + 1 < num_tokens, to, second[0], second[1], second[2], second[3]);
        }
    }
}

// x [num_tokens, x_stride], `width` features, a multiple of 32; order [num_sorted] int32. Grid (num_tokens / TOKENS, any).
extern "C" __global__ void gather_rows(const int* order, uint4* out, u32 num_sorted, u32 width, u32 num_tokens, const In* x, u32 x_stride) {
    begin(order, num_sorted, nullptr, 0);
    stage(width, [&](int t, u32 i, float (&values)[8]) {
        read_eight<IN>(x + static_cast<u64>(token_at(t, num_tokens)) * x_stride + i, values);
    });
    write_sorted(order, out, num_sorted, num_tokens);
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
    const int* order, uint4* out, u32 num_sorted, u32 width, u32 num_tokens, const In* x, u32 x_stride, const Weight* weight, float eps,
    float offset
) {
    begin(order, num_sorted, weight, width);
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
    write_sorted(order, out, num_sorted, num_tokens);
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
    const int* order, uint4* out, u32 num_sorted, u32 width, u32 num_tokens, const In* gate, u32 gate_stride, const In* up, u32 up_stride,
    u32 activation
) {
    begin(order, num_sorted, nullptr, 0);
    switch (activation) {
        case 0: stage_gated<0>(width, num_tokens, gate, gate_stride, up, up_stride); break;
        case 1: stage_gated<1>(width, num_tokens, gate, gate_stride, up, up_stride); break;
        case 2: stage_gated<2>(width, num_tokens, gate, gate_stride, up, up_stride); break;
        default: stage_gated<3>(width, num_tokens, gate, gate_stride, up, up_stride); break;
    }
    write_sorted(order, out, num_sorted, num_tokens);
}
