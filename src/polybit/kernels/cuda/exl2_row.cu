// One product of one row (product.cuh) after its RMSNorm (arXiv 1910.07467), without a launch that prepares activations:
// every thread block norms the row and sorts it (activations.cuh) into its own shared memory.

#include "activations.cuh"
#include "overlap.cuh"

constexpr bool RESIDENT = true;

#include "product.cuh"

constexpr u32 THREADS = 32 * WARPS;
constexpr u32 GROUPS_AT_ONCE = THREADS / GROUP_LANES;
constexpr int AT_ONCE = 4;  // loads on the way of a thread

struct Row {
    const void* x;          // [width]
    const void* weight;     // [width], which no launch writes
    u32 type, weight_type;  // of these, as in numbers.cuh
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

// The row, multiplied by that; returns the norm's factor, which it has not got yet.
__device__ __forceinline__ float place_row(const Row& given, float* row) {
    __shared__ float parts[WARPS];
    float squares = 0.f;
    each_four(given.x, given.type, given.width, [&](u32 i, const float4& x) {
        float4* at = reinterpret_cast<float4*>(row + i);
        const float4 w = *at;
        squares += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
        *at = {x.x * w.x, x.y * w.y, x.z * w.z, x.w * w.w};
    });
#pragma unroll
    for (int step = 16; step > 0; step /= 2) squares += __shfl_xor_sync(0xffffffff, squares, step);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = squares;
    __syncthreads();
    squares = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) squares += parts[w];
    return rsqrtf(squares / static_cast<float>(given.width) + given.eps);
}

struct Order {
    const int* features;  // [sorted rows]
    const InputGroup* groups;
    u32 num_groups;
};

// The thread's next AT_ONCE groups, of which `first` is one.
struct Places {
    Place found[AT_ONCE];

    __device__ __forceinline__ void find(const Order& order, u32 first) {
#pragma unroll
        for (u32 j = 0; j < AT_ONCE; ++j) {
            const u32 group = first + j * GROUPS_AT_ONCE;
            found[j] = group < order.num_groups ? find_place(order.features, order.groups, group) : Place{};
        }
    }

    __device__ __forceinline__ void sort_row(const Order& order, u32 first, const float* row, float factor, char* out) {
#pragma unroll
        for (u32 j = 0; j < AT_ONCE; ++j) {
            const u32 group = first + j * GROUPS_AT_ONCE;
            if (group < order.num_groups) sort(found[j], group, 0, out, 1, [&](int i) { return row[i] * factor; });
        }
    }
};

// ---- the launch

// out [columns]; x and weight [width], at addresses that 16 divides; sorted_bytes: of the sorted row.
extern "C" __global__ void __launch_bounds__(32 * WARPS, 1) exl2_row(
    const char* stream, const Run* runs, const Tile* tiles, const u32* maxima, void* out, float* workspace,
    u32* counters, u32 num_runs, u32 num_tiles, u32 out_is_float, const int* features, const InputGroup* groups,
    u32 num_groups, u32 sorted_bytes, const void* x, u32 type, const void* weight, u32 weight_type, u32 width, float eps,
    float offset
) {
    extern __shared__ __align__(128) char memory[];
    __shared__ __align__(8) u64 barriers[WARPS * SLOTS];
    __shared__ Tile own_tiles[MAX_TILES];
    char* input = memory + WARPS * RING_BYTES;
    float* row = reinterpret_cast<float*>(input + sorted_bytes);  // sums when the row has been sorted
    const Product product = {runs, tiles, maxima, num_runs, num_tiles};
    const Row given = {x, weight, type, weight_type, width, eps, offset};
    const Order order = {features, groups, num_groups};
    Ring ring = {stream, nullptr, 1};
    ring.place(memory, barriers);

    let_next_grid_start();
    ring.fill(product.own_runs(), true, false);
    u32 group = threadIdx.x / GROUP_LANES;
    Places places;
    places.find(order, group);
    place_weight(given, row);
    product.copy_tiles(own_tiles);
    wait_for_previous_grid();
    const float factor = place_row(given, row);
    places.sort_row(order, group, row, factor, input);
    while ((group += AT_ONCE * GROUPS_AT_ONCE) < num_groups) {
        places.find(order, group);
        places.sort_row(order, group, row, factor, input);
    }
    __syncthreads();
    multiply(product, ring, shared_address(input), row, 1);
    __syncthreads();
    finish(product, own_tiles, row, workspace, counters, {out, nullptr, 0, out_is_float != 0}, 1);
}
