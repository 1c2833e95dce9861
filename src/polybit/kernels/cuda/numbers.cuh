// Activations of three types, by number: 0 fp16, 1 bf16, 2 fp32. Arithmetic is in fp32.

#pragma once

#include "unpack.cuh"
#include "wide.cuh"

template <int kind>
struct Number;

template <>
struct Number<0> {
    typedef u16 Type;
    static __device__ __forceinline__ float low(u32 pair) { return low_half(pair); }
    static __device__ __forceinline__ float high(u32 pair) { return high_half(pair); }
};

template <>
struct Number<1> {
    typedef u16 Type;
    static __device__ __forceinline__ float low(u32 pair) { return __uint_as_float(pair << 16); }
    static __device__ __forceinline__ float high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
};

template <>
struct Number<2> {
    typedef float Type;
};

template <int kind>
__device__ __forceinline__ float read_one(typename Number<kind>::Type x) {
    if constexpr (kind == 2) return x;
    else return Number<kind>::low(x);
}

// Eight neighbours, at an address that 16 divides.
template <int kind>
__device__ __forceinline__ void read_eight(const typename Number<kind>::Type* from, float (&values)[8]) {
    if constexpr (kind == 2) {
        const uint4 near = load_16_after_wait(from), far = load_16_after_wait(from + 4);
        const u32 words[8] = {near.x, near.y, near.z, near.w, far.x, far.y, far.z, far.w};
#pragma unroll
        for (int i = 0; i < 8; ++i) values[i] = __uint_as_float(words[i]);
    } else {
        const uint4 found = load_16_after_wait(from);
        const u32 pairs[4] = {found.x, found.y, found.z, found.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            values[2 * i] = Number<kind>::low(pairs[i]);
            values[2 * i + 1] = Number<kind>::high(pairs[i]);
        }
    }
}

// Two numbers, rounded to fp16 (0) or bf16 (1).
template <int kind>
__device__ __forceinline__ u32 pack_pair(float low, float high) {
#if __CUDA_ARCH__ >= 800
    u32 out;
    if constexpr (kind == 0) asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    else asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
#else
    if constexpr (kind == 0) return to_half(low) | static_cast<u32>(to_half(high)) << 16;
    const u32 a = __float_as_uint(low), b = __float_as_uint(high);
    return __byte_perm(a + 0x7fff + (a >> 16 & 1), b + 0x7fff + (b >> 16 & 1), 0x7632);
#endif
}
