// Launches that prepare activations for a product (activations.cuh): sixteen lanes a group and token.
//
// IN, WEIGHT: types of activations and of a norm's weight, as in numbers.cuh.

#include "activations.cuh"
#include "overlap.cuh"

typedef Number<IN>::Type In;
typedef Number<WEIGHT>::Type Weight;
__device__ __forceinline__ float from_in(In x) { return read_one<IN>(x); }
__device__ __forceinline__ float from_weight(Weight x) { return read_one<WEIGHT>(x); }

// Grid (num_groups / 8, num_tokens), 128 threads.
__device__ __forceinline__ u32 own_group() { return (blockIdx.x * 128 + threadIdx.x) / GROUP_LANES; }

// Returns when what earlier launches wrote can be read.
__device__ __forceinline__ Place begin(const int* order, const InputGroup* groups, u32 group, u32 num_groups) {
    let_next_grid_start();
    const Place place = group < num_groups ? find_place(order, groups, group) : Place{};
    wait_for_previous_grid();
    return place;
}

// x [num_tokens, x_stride]; order [sorted rows] int32, the feature at each.
extern "C" __global__ void sort_rows(
    const int* order, const InputGroup* groups, char* out, u32 num_groups, u32 num_tokens, const In* x, u32 x_stride
) {
    const u32 group = own_group(), token = blockIdx.y;
    const Place place = begin(order, groups, group, num_groups);
    const In* row = x + static_cast<u64>(token) * x_stride;
    if (group < num_groups) sort(place, group, token, out, num_tokens, [&](int i) { return from_in(row[i]); });
}

// The same of RMSNorm (arXiv 1910.07467): x / sqrt(mean(x^2) + eps) * (weight + offset); weight [width] of type Weight.
extern "C" __global__ void norm_sort_rows(
    const int* order, const InputGroup* groups, char* out, u32 num_groups, u32 num_tokens, const In* x, u32 x_stride,
    const Weight* weight, u32 width, float eps, float offset
) {
    __shared__ float sums[4];
    const u32 group = own_group(), token = blockIdx.y;
    const Place place = begin(order, groups, group, num_groups);
    const In* row = x + static_cast<u64>(token) * x_stride;
    float sum = 0.f;
    for (u32 i = threadIdx.x; i < width; i += 128) sum += from_in(row[i]) * from_in(row[i]);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    const float scale = rsqrtf((sums[0] + sums[1] + sums[2] + sums[3]) / static_cast<float>(width) + eps);
    if (group < num_groups) sort(place, group, token, out, num_tokens, [&](int i) {
        return from_in(row[i]) * scale * (from_weight(weight[i]) + offset);
    });
}

// The same of act(gate) * up, both [num_tokens, stride]; activation as in activate.cuh.
extern "C" __global__ void gated_sort_rows(
    const int* order, const InputGroup* groups, char* out, u32 num_groups, u32 num_tokens, const In* gate,
    u32 gate_stride, const In* up, u32 up_stride, u32 activation
) {
    const u32 group = own_group(), token = blockIdx.y;
    const Place place = begin(order, groups, group, num_groups);
    const In* gates = gate + static_cast<u64>(token) * gate_stride;
    const In* ups = up + static_cast<u64>(token) * up_stride;
    if (group < num_groups) sort(place, group, token, out, num_tokens, [&](int i) {
        return activate(from_in(gates[i]), activation) * from_in(ups[i]);
    });
}
