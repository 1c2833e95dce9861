// Launches that prepare activations for a product (activations.cuh): sixteen lanes a group and token.
//
// A product waits for its launch, so all that takes long is asked for at once: the compiler may use many registers, and
// what no launch writes is on its way before the wait.
//
// IN, WEIGHT: types of activations and of a norm's weight, as in numbers.cuh.

#include "activations.cuh"
#include "overlap.cuh"

typedef Number<IN>::Type In;
typedef Number<WEIGHT>::Type Weight;
__device__ __forceinline__ float from_in(In x) { return read_one<IN>(x); }
__device__ __forceinline__ float from_weight(Weight x) { return read_one<WEIGHT>(x); }

// Grid (num_groups / 8, num_tokens).
constexpr u32 THREADS = 128;
__device__ __forceinline__ u32 own_group() { return (blockIdx.x * THREADS + threadIdx.x) / GROUP_LANES; }

__device__ __forceinline__ Place begin(const int* order, const InputGroup* groups, u32 group, u32 num_groups) {
    let_next_grid_start();
    return group < num_groups ? find_place(order, groups, group) : Place{};
}

// x [num_tokens, x_stride]; order [sorted rows] int32, the feature at each.
extern "C" __global__ void __launch_bounds__(THREADS, 1) sort_rows(
    const int* order, const InputGroup* groups, char* out, u32 num_groups, u32 num_tokens, const In* x, u32 x_stride
) {
    const u32 group = own_group(), token = blockIdx.y;
    const Place place = begin(order, groups, group, num_groups);
    const In* row = x + static_cast<u64>(token) * x_stride;
    wait_for_previous_grid();
    if (group >= num_groups) return;
    float values[4];
    place.read(values, [&](int i) { return from_in(row[i]); });
    store_group(values, group, token, place.shape, out, num_tokens);
}

// Of the numbers that this thread reads of a row, which begins at an address that 16 divides.
__device__ __forceinline__ float sum_of_squares(const In* row, u32 width) {
    constexpr u32 EACH = 16 / sizeof(In), LOADS = 8;
    float sum = 0.f;
    for (u32 start = EACH * threadIdx.x; start < width; start += LOADS * EACH * THREADS) {
        uint4 read[LOADS];
#pragma unroll
        for (u32 i = 0; i < LOADS; ++i) {
            const u32 at = start + EACH * THREADS * i;
            read[i] = at < width ? load_16_after_wait(row + at) : uint4{};
        }
#pragma unroll
        for (u32 i = 0; i < LOADS; ++i) {
            const In* numbers = reinterpret_cast<const In*>(&read[i]);
#pragma unroll
            for (u32 j = 0; j < EACH; ++j) sum += from_in(numbers[j]) * from_in(numbers[j]);
        }
    }
    return sum;
}

// The same of RMSNorm (arXiv 1910.07467): x / sqrt(mean(x^2) + eps) * (weight + offset); weight [width] of type Weight.
// Rows begin at addresses that 16 divides, and so does their width.
extern "C" __global__ void __launch_bounds__(THREADS, 1) norm_sort_rows(
    const int* order, const InputGroup* groups, char* out, u32 num_groups, u32 num_tokens, const In* x, u32 x_stride,
    const Weight* weight, u32 width, float eps, float offset
) {
    __shared__ float sums[THREADS / 32];
    const u32 group = own_group(), token = blockIdx.y;
    const Place place = begin(order, groups, group, num_groups);
    const In* row = x + static_cast<u64>(token) * x_stride;
    float weights[4], values[4];
    place.read(weights, [&](int i) { return from_weight(weight[i]) + offset; });
    wait_for_previous_grid();
    place.read(values, [&](int i) { return from_in(row[i]); });
    float sum = sum_of_squares(row, width);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    const float scale = rsqrtf((sums[0] + sums[1] + sums[2] + sums[3]) / static_cast<float>(width) + eps);
    if (group >= num_groups) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) values[i] *= scale * weights[i];
    store_group(values, group, token, place.shape, out, num_tokens);
}

// The same of act(gate) * up, both [num_tokens, stride]; activation as in activate.cuh.
extern "C" __global__ void __launch_bounds__(THREADS, 1) gated_sort_rows(
    const int* order, const InputGroup* groups, char* out, u32 num_groups, u32 num_tokens, const In* gate,
    u32 gate_stride, const In* up, u32 up_stride, u32 activation
) {
    const u32 group = own_group(), token = blockIdx.y;
    const Place place = begin(order, groups, group, num_groups);
    const In* gates = gate + static_cast<u64>(token) * gate_stride;
    const In* ups = up + static_cast<u64>(token) * up_stride;
    wait_for_previous_grid();
    if (group >= num_groups) return;
    float values[4], factors[4];
    place.read(values, [&](int i) { return from_in(gates[i]); });
    place.read(factors, [&](int i) { return from_in(ups[i]); });
#pragma unroll
    for (int i = 0; i < 4; ++i) values[i] = activate(values[i], activation) * factors[i];
    store_group(values, group, token, place.shape, out, num_tokens);
}
