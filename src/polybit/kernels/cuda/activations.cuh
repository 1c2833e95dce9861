// Activations as product.cuh reads them: sorted, group by group brought near one magnitude by a power of two, and those of
// 2-bit groups divided by the power of two that their slot of the stream carries (see unpack.cuh, Unpack<2>). Bytes, group
// after group: {start, scale} fp32 of each token, padded to 16; then for each block of 32 rows each token's 32 as fp16.

#pragma once

#include "activate.cuh"
#include "numbers.cuh"

struct InputGroup {
    u32 row;    // first sorted row
    u32 shape;  // rows | bits << 16
};

constexpr int TOP_EXPONENT = 11;  // of a group's largest: room above for sums, and below for the smallest of a group

// Sixteen neighbouring lanes take a group, of at most 64 rows as stream.py cuts them, and a token.
constexpr u32 GROUP_LANES = 16;
__device__ __forceinline__ u32 group_lane() { return threadIdx.x % GROUP_LANES; }

template <typename F>
__device__ __forceinline__ float over_group(float x, F combine) {
    const u32 mask = 0xffffu << (threadIdx.x & 16);  // the other sixteen may be elsewhere
#pragma unroll
    for (int step = GROUP_LANES / 2; step > 0; step /= 2) x = combine(x, __shfl_xor_sync(mask, x, step));
    return x;
}

__device__ __forceinline__ float sum_over_group(float x) {
    return over_group(x, [](float a, float b) { return a + b; });
}

// Four halves of a lane, to the group's blocks [blocks][num_tokens][32].
__device__ __forceinline__ void store_rows(const u32 (&halves)[4], char* blocks, u32 token, u32 num_tokens) {
    const u32 lane = group_lane();
    const uint2 packed = {halves[0] | halves[1] << 16, halves[2] | halves[3] << 16};
    *reinterpret_cast<uint2*>(blocks + 64 * (lane / 8 * num_tokens + token) + 8 * (lane % 8)) = packed;
}

// values[i] is sorted row 4 lane + i of the group.
__device__ __forceinline__ void store_group(
    float (&values)[4], u32 group, u32 token, const InputGroup& shape, char* out, u32 num_tokens
) {
    const u32 lane = group_lane(), rows = shape.shape & 0xffff, bits = shape.shape >> 16;
    char* begin = out + static_cast<u64>(shape.row) * 2 * num_tokens;
    float largest = 0.f;
#pragma unroll
    for (int i = 0; i < 4; ++i) largest = fmaxf(largest, fabsf(values[i]));
    largest = over_group(largest, [](float a, float b) { return fmaxf(a, b); });
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
    begin += static_cast<u64>(group) * header;
    if (4 * lane < rows) store_rows(halves, begin + header, token, num_tokens);
    start = sum_over_group(start);
    if (lane == 0) reinterpret_cast<float2*>(begin)[token] = {start, down};
}

// What a lane takes of its group, and where that is in the unsorted row.
struct Place {
    InputGroup shape;
    int4 from;      // features of the lane's four sorted rows
    bool has_rows;  // of its own

    // f(feature) of the four; zeros where the lane has none.
    template <typename F>
    __device__ __forceinline__ void read(float (&values)[4], F f) const {
        values[0] = has_rows ? f(from.x) : 0.f;
        values[1] = has_rows ? f(from.y) : 0.f;
        values[2] = has_rows ? f(from.z) : 0.f;
        values[3] = has_rows ? f(from.w) : 0.f;
    }
};

__device__ __forceinline__ Place find_place(const int* order, const InputGroup* groups, u32 group) {
    const u32 lane = group_lane();
    Place place = {groups[group], {}, false};
    place.has_rows = 4 * lane < (place.shape.shape & 0xffff);
    if (place.has_rows) place.from = *reinterpret_cast<const int4*>(order + place.shape.row + 4 * lane);
    return place;
}
