// Loads and stores of 16 bytes a lane. Written out, because the compiler takes assignments of vectors apart: a 16-byte
// store became four of 4 bytes, and loads moved behind stores that should hide them.

#pragma once

#include "unpack.cuh"

__device__ __forceinline__ uint4 load_16(const void* from) {  // of what no running kernel writes
    uint4 out;
    asm volatile("ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w) : "l"(from) : "memory");
    return out;
}

__device__ __forceinline__ uint4 load_16_after_wait(const void* from) {  // of what the launch before wrote
    uint4 out;
    asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w) : "l"(from) : "memory");
    return out;
}

__device__ __forceinline__ uint2 load_8(const void* from) {
    uint2 out;
    asm volatile("ld.global.nc.v2.b32 {%0, %1}, [%2];" : "=r"(out.x), "=r"(out.y) : "l"(from) : "memory");
    return out;
}

// Will be read soon: to the second-level cache.
__device__ __forceinline__ void prefetch(const void* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }

__device__ __forceinline__ u32 load_4(const void* from) {
    u32 out;
    asm volatile("ld.global.nc.b32 %0, [%1];" : "=r"(out) : "l"(from) : "memory");
    return out;
}

__device__ __forceinline__ void store_16(bool wanted, void* to, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %0, 0; @p st.global.v4.b32 [%1], {%2, %3, %4, %5}; }"
                 ::"r"(static_cast<u32>(wanted)), "l"(to), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}
