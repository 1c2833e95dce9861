// From memory to the operands of the tensor cores: copies to shared memory, loads from there, one multiplication.

#pragma once

#include "unpack.cuh"

__device__ __forceinline__ u32 shared_address(const void* p) {
    return static_cast<u32>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ void copy16(u32 target, const char* source) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" :: "r"(target), "l"(source));
#else
    const uint4 value = *reinterpret_cast<const uint4*>(source);
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};"
                 :: "r"(target), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w));
#endif
}

__device__ __forceinline__ void load4(u32 (&w)[4], u32 address) {
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3]) : "r"(address));
}

__device__ __forceinline__ void load2(u32& a, u32& b, u32 address) {
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(a), "=r"(b) : "r"(address));
}

__device__ __forceinline__ u32 load1(u32 address) {
    u32 w;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(w) : "r"(address));
    return w;
}

// The lane's words of half a block, where a half lies together, which is so from four bits on.
template <int bits>
__device__ __forceinline__ void load_wide(u32 (&w)[bits], u32 from) {
    const u32 lane = threadIdx.x % 32;
    load4(*reinterpret_cast<u32(*)[4]>(w), from + 16 * lane);
    if constexpr (bits == 5) w[4] = load1(from + 512 + 4 * lane);
    if constexpr (bits == 6) load2(w[4], w[5], from + 512 + 8 * lane);
    if constexpr (bits == 8) load4(*reinterpret_cast<u32(*)[4]>(w + 4), from + 512 + 16 * lane);
}

// The lane's words of a block of 32 rows by 64 columns at shared address `at`: those of columns 0 .. 31, then the others.
template <int bits>
__device__ __forceinline__ void load_words(u32 (&w)[2 * bits], u32 at) {
    const u32 lane = threadIdx.x % 32;
    if constexpr (bits < 4) {
        load4(*reinterpret_cast<u32(*)[4]>(w), at + 16 * lane);
        if constexpr (bits == 3) load2(w[4], w[5], at + 512 + 8 * lane);
    } else {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            load_wide<bits>(*reinterpret_cast<u32(*)[bits]>(w + half * bits), at + half * 128 * bits);
        }
    }
}

// The same words of columns 0 .. 31 alone, or of the others.
template <int bits>
__device__ __forceinline__ void load_half(u32 (&w)[bits], u32 at, u32 half) {
    const u32 lane = threadIdx.x % 32;
    if constexpr (bits == 2) {
        load2(w[0], w[1], at + 16 * lane + 8 * half);
    } else if constexpr (bits == 3) {
        w[0] = load1(at + 16 * lane + 12 * half);
        w[1] = load1(at + (half ? 512 + 8 * lane : 16 * lane + 4));
        w[2] = load1(at + (half ? 516 + 8 * lane : 16 * lane + 8));
    } else {
        load_wide<bits>(w, at + half * 128 * bits);
    }
}

// d = a * b + c: 16 columns by 16 rows of weights, 16 rows by 8 tokens of activations
__device__ __forceinline__ void multiply(
    float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1, float c0, float c1, float c2, float c3
) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "f"(c0), "f"(c1), "f"(c2), "f"(c3));
#else
    asm("{ .reg .f32 t<4>;\n"
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {t0,t1,t2,t3}, {%4,%5}, {%8}, {%10,%11,%12,%13};\n"
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%6,%7}, {%9}, {t0,t1,t2,t3}; }"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "f"(c0), "f"(c1), "f"(c2), "f"(c3));
#endif
}
