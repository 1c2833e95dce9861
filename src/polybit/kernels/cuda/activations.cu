// Activations as exl2_decode reads them: sorted, group by group brought near one magnitude by a power of two, and those of
// 2-bit groups divided by the power of two that their slot of the stream carries (see unpack.cuh, Unpack<2>). Bytes, group
// after group: {start, scale} fp32 of each token, padded to 16; then for each block of 32 rows each token's 32 as fp16.
//
// IN, WEIGHT: types of activations and of a norm's weight, 0 fp16, 1 bf16, 2 fp32.

#include "overlap.cuh"
#include "unpack.cuh"

template <int kind>
struct Number;

template <>
struct Number<0> {
    typedef u16 Type;
    static __device__ __forceinline__ float read(u16 x) { return low_half(x); }
};

template <>
struct Number<1> {
    typedef u16 Type;
    static __device__ __forceinline__ float read(u16 x) { return __uint_as_float(static_cast<u32>(x) << 16); }
};

template <>
struct Number<2> {
    typedef float Type;
    static __device__ __forceinline__ float read(float x) { return x; }
};

typedef Number<IN>::Type In;
typedef Number<WEIGHT>::Type Weight;
__device__ __forceinline__ float from_in(In x) { return Number<IN>::read(x); }
__device__ __forceinline__ float from_weight(Weight x) { return Number<WEIGHT>::read(x); }

struct InputGroup {
    u32 row;    // first sorted row
    u32 shape;  // rows | bits << 16
};

constexpr int TOP_EXPONENT = 11;  // of a group's largest: room above for sums, and below for the smallest of a group

// One warp a group of at most 128 rows and a token: values[i] is sorted row 4 lane + i of the group.
__device__ __forceinline__ void store_group(
    float (&values)[4], u32 group, u32 token, const InputGroup& shape, char* out, u32 num_tokens
) {
    const u32 lane = threadIdx.x % 32, rows = shape.shape & 0xffff, bits = shape.shape >> 16;
    float largest = 0.f;
#pragma unroll
    for (int i = 0; i < 4; ++i) largest = fmaxf(largest, fabsf(values[i]));
#pragma unroll
    for (int step = 16; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, step));
    // 2^(TOP_EXPONENT - exponent of the largest), exact
    const int exponent = static_cast<int>(__float_as_uint(largest) >> 23) - 127;
    const int shift = min(max(TOP_EXPONENT - exponent, -126), 126);
    const float up = __uint_as_float(static_cast<u32>(127 + shift) << 23);
    const float down = __uint_as_float(static_cast<u32>(127 - shift) << 23);
    float start = 0.f;
    u32 halves[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        float value = values[i] * up;
        if (bits == 2) {
            const int power = 2 * ((4 * lane + i) % 8 / 2) + 2;
            value *= __uint_as_float(static_cast<u32>(127 - power) << 23);
            halves[i] = to_half(value);
            start -= low_half(halves[i]) * (1024.f + static_cast<float>(2 << power));
        } else {
            halves[i] = to_half(value);
        }
    }
    const u32 header = (8 * num_tokens + 15) / 16 * 16;
    char* begin = out + static_cast<u64>(group) * header + static_cast<u64>(shape.row) * 2 * num_tokens;
    if (4 * lane < rows) {
        const uint2 packed = {halves[0] | halves[1] << 16, halves[2] | halves[3] << 16};
        *reinterpret_cast<uint2*>(begin + header + 64 * (lane / 8 * num_tokens + token) + 8 * (lane % 8)) = packed;
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) start += __shfl_xor_sync(0xffffffff, start, step);
    if (lane == 0) reinterpret_cast<float2*>(begin)[token] = {start, down};
}

// What a lane takes of its warp's group, and where that is in the unsorted row.
struct Place {
    u32 group, token;
    InputGroup shape;
    int4 from;      // features of the lane's four sorted rows
    bool has_rows;  // of its own
};

// Grid (num_groups / 4, num_tokens), 128 threads; returns when what earlier launches wrote can be read.
__device__ __forceinline__ Place find_place(const int* order, const InputGroup* groups, u32 num_groups) {
    Place place = {blockIdx.x * 4 + threadIdx.x / 32, blockIdx.y, {}, {}, false};
    const u32 lane = threadIdx.x % 32;
    let_next_grid_start();
    if (place.group < num_groups) {
        place.shape = groups[place.group];
        place.has_rows = 4 * lane < (place.shape.shape & 0xffff);
        if (place.has_rows) place.from = *reinterpret_cast<const int4*>(order + place.shape.row + 4 * lane);
    }
    wait_for_previous_grid();
    return place;
}

// Sorts f(feature) of every feature of the token.
template <typename F>
__device__ __forceinline__ void sort(const Place& place, char* out, u32 num_groups, u32 num_tokens, F f) {
    if (place.group >= num_groups) return;
    float values[4] = {};
    if (place.has_rows) {
        values[0] = f(place.from.x);
        values[1] = f(place.from.y);
        values[2] = f(place.from.z);
        values[3] = f(place.from.w);
    }
    store_group(values, place.group, place.token, place.shape, out, num_tokens);
}

// x [num_tokens, x_stride]; order [sorted rows] int32, the feature at each.
extern "C" __global__ void sort_rows(
    const int* order, const InputGroup* groups, char* out, u32 num_groups, u32 num_tokens, const In* x, u32 x_stride
) {
    const Place place = find_place(order, groups, num_groups);
    const In* row = x + static_cast<u64>(place.token) * x_stride;
    sort(place, out, num_groups, num_tokens, [&](int i) { return from_in(row[i]); });
}

// The same of RMSNorm (arXiv 1910.07467): x / sqrt(mean(x^2) + eps) * (weight + offset); weight [width] of type Weight.
extern "C" __global__ void norm_sort_rows(
    const int* order, const InputGroup* groups, char* out, u32 num_groups, u32 num_tokens, const In* x, u32 x_stride,
    const Weight* weight, u32 width, float eps, float offset
) {
    __shared__ float sums[4];
    const Place place = find_place(order, groups, num_groups);
    const In* row = x + static_cast<u64>(place.token) * x_stride;
    float sum = 0.f;
    for (u32 i = threadIdx.x; i < width; i += 128) sum += from_in(row[i]) * from_in(row[i]);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    const float scale = rsqrtf((sums[0] + sums[1] + sums[2] + sums[3]) / static_cast<float>(width) + eps);
    sort(place, out, num_groups, num_tokens, [&](int i) {
        return from_in(row[i]) * scale * (from_weight(weight[i]) + offset);
    });
}

// The same of act(gate) * up, both [num_tokens, stride]; activation as in decode.py: ACTIVATIONS.
extern "C" __global__ void gated_sort_rows(
    const int* order, const InputGroup* groups, char* out, u32 num_groups, u32 num_tokens, const In* gate,
    u32 gate_stride, const In* up, u32 up_stride, u32 activation
) {
    const Place place = find_place(order, groups, num_groups);
    const In* gates = gate + static_cast<u64>(place.token) * gate_stride;
    const In* ups = up + static_cast<u64>(place.token) * up_stride;
    sort(place, out, num_groups, num_tokens, [&](int i) {
        const float x = from_in(gates[i]);
        float y;
        switch (activation) {
            case 0: y = x / (1.f + expf(-x)); break;
            case 1: y = 0.5f * x * (1.f + erff(x * 0.70710678118654752f)); break;
            case 2: y = 0.5f * x * (1.f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x))); break;
            default: y = fmaxf(x, 0.f);
        }
        return y * from_in(ups[i]);
    });
}
