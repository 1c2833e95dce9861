// One product of one row (product.cuh), from the row as it is: every thread block sorts it (activations.cuh) into its own
// shared memory, so that no launch stands between two products but what computes something.

#include "activations.cuh"
#include "overlap.cuh"

constexpr bool RESIDENT = true;

#include "product.cuh"

constexpr u32 THREADS = 32 * WARPS;
constexpr u32 GROUPS_AT_ONCE = THREADS / GROUP_LANES;
constexpr int AT_ONCE = 4;  // loads on the way of a thread

struct Row {
    const void* x;          // [width], of a type as in numbers.cuh
    const void* weight;     // of an RMSNorm (arXiv 1910.07467), [width] of another; null: none
    u32 type, weight_type;
    u32 width;              // a multiple of 32
    float eps, offset;
};

// ---- four neighbours, from the second-level cache: the grid before may write them after this one has begun

template <int type>
struct Four {
    uint2 pairs;
    __device__ __forceinline__ void load(const void* from, u32 i) {
        pairs = __ldcg(reinterpret_cast<const uint2*>(from) + i / 4);
    }
    __device__ __forceinline__ float4 read() const {
        typedef Number<type> N;
        return {N::low(pairs.x), N::high(pairs.x), N::low(pairs.y), N::high(pairs.y)};
    }
};

template <>
struct Four<2> {
    float4 values;
    __device__ __forceinline__ void load(const void* from, u32 i) {
        values = __ldcg(reinterpret_cast<const float4*>(from) + i / 4);
    }
    __device__ __forceinline__ float4 read() const { return values; }
};

// f(i, four neighbours from i on), a thread always the same i.
template <int type, typename F>
__device__ __forceinline__ void each_four(const void* from, u32 width, F f) {
    for (u32 start = 4 * threadIdx.x; start < width; start += 4 * THREADS * AT_ONCE) {
        Four<type> found[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; ++j) {
            const u32 i = start + 4 * THREADS * j;
            if (i < width) found[j].load(from, i);
        }
#pragma unroll
        for (int j = 0; j < AT_ONCE; ++j) {
            const u32 i = start + 4 * THREADS * j;
            if (i < width) f(i, found[j].read());
        }
    }
}

template <typename F>
__device__ __forceinline__ void each_four(const void* from, u32 type, u32 width, F f) {
    switch (type) {
        case 0: each_four<0>(from, width, f); break;
        case 1: each_four<1>(from, width, f); break;
        default: each_four<2>(from, width, f); break;
    }
}

// ---- the row in shared memory

// What the row will be multiplied by, to `row` [width].
__device__ __forceinline__ void place_weight(const Row& given, float* row) {
    each_four(given.weight, given.weight_type, given.width, [&](u32 i, const float4& w) {
        const float a = given.offset;
        *reinterpret_cast<float4*>(row + i) = {w.x + a, w.y + a, w.z + a, w.w + a};
    });
}

// The row, multiplied by that; returns a norm's factor, which it has not got yet.
__device__ __forceinline__ float place_row(const Row& given, float* row) {
    __shared__ float parts[WARPS];
    const bool is_normed = given.weight != nullptr;
    float squares = 0.f;
    each_four(given.x, given.type, given.width, [&](u32 i, float4 x) {
        float4* at = reinterpret_cast<float4*>(row + i);
        if (is_normed) {
            const float4 w = *at;
            squares += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
            x = {x.x * w.x, x.y * w.y, x.z * w.z, x.w * w.w};
        }
        *at = x;
    });
#pragma unroll
    for (int step = 16; step > 0; step /= 2) squares += __shfl_xor_sync(0xffffffff, squares, step);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = squares;
    __syncthreads();
    if (!is_normed) return 1.f;
    squares = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) squares += parts[w];
    return rsqrtf(squares / static_cast<float>(given.width) + given.eps);
}

struct Order {
    const int* features;  // [sorted rows]
    const InputGroup* groups;
    u32 num_groups;

    __device__ __forceinline__ Place place(u32 group) const {
        return group < num_groups ? find_place(features, groups, group) : Place{};
    }
};

// ---- the launch

// out and residual [out_stride], residual null: none. input_bytes: of the sorted row.
extern "C" __global__ void __launch_bounds__(32 * WARPS, ONE ? 16 / WARPS : 1) exl2_row(
    const char* stream, const Run* runs, const Tile* tiles, const u32* maxima, const void* x, void* out,
    const void* residual, float* workspace, u32* counters, u32 num_runs, u32 num_tiles, u32 out_stride,
    u32 out_is_float, const int* order, const InputGroup* groups, u32 num_groups, u32 input_bytes, u32 width, u32 type,
    const void* weight, u32 weight_type, float eps, float offset
) {
    extern __shared__ __align__(128) char memory[];
    __shared__ __align__(8) u64 barriers[WARPS * SLOTS];
    char* input = memory + WARPS * RING_BYTES;
    float* row = reinterpret_cast<float*>(input + input_bytes);  // sums when the row has been sorted
    const Product product = {runs, tiles, maxima, num_runs, num_tiles};
    const Row given = {x, weight, type, weight_type, width, eps, offset};
    const Order sorted = {order, groups, num_groups};
    Ring ring = {stream, nullptr, 1};
    ring.place(memory, barriers);

    let_next_grid_start();
    Place places[AT_ONCE];
    const u32 first = threadIdx.x / GROUP_LANES;
#if WEIGHTS_FIRST
    ring.fill(product.own_runs(), true, false);
#endif
#pragma unroll
    for (u32 j = 0; j < AT_ONCE; ++j) places[j] = sorted.place(first + j * GROUPS_AT_ONCE);
    if (weight != nullptr) place_weight(given, row);
#if !WEIGHTS_FIRST
    ring.fill(product.own_runs(), true, false);
#endif
#if TILES
    __shared__ Tile own_tiles[256];
    for (u32 i = threadIdx.x; i < num_tiles; i += 32 * WARPS) own_tiles[i] = product.own_tiles()[i];
#else
    const Tile* own_tiles = product.own_tiles();
#endif
    wait_for_previous_grid();
    const float factor = place_row(given, row);
    for (u32 start = first;;) {
#pragma unroll
        for (u32 j = 0; j < AT_ONCE; ++j) {
            const u32 group = start + j * GROUPS_AT_ONCE;
            if (group < num_groups) sort(places[j], group, 0, input, 1, [&](int i) { return row[i] * factor; });
        }
        start += AT_ONCE * GROUPS_AT_ONCE;
        if (start >= num_groups) break;
#pragma unroll
        for (u32 j = 0; j < AT_ONCE; ++j) places[j] = sorted.place(start + j * GROUPS_AT_ONCE);
    }
    __syncthreads();
    multiply(product, ring, shared_address(input), row, 1);
    __syncthreads();
    finish(product, own_tiles, row, workspace, counters, {out, residual, out_stride, out_is_float != 0}, 1);
}
