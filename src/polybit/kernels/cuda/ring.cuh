// Chunks of a stream go round in slots of shared memory, each with barriers: of what has arrived, and of who has read it.
//
// Compile-time: STAGES (slots).

#pragma once

#include "unpack.cuh"

// A slot of the ring, and how often, modulo two, the ring has gone round.
struct Place {
    u32 slot;
    u32 phase;

    __device__ __forceinline__ void move_on() {
        if (++slot == STAGES) {
            slot = 0;
            phase ^= 1;
        }
    }
};

// Until that phase of a barrier, counted modulo two, is over. A new barrier lets 1 pass.
__device__ __forceinline__ void wait_for(u32 barrier, u32 phase) {
#if __CUDA_ARCH__ >= 900
    asm volatile("{ .reg .pred done;\n"
                 "again: mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
                 "@!done bra again; }" :: "r"(barrier), "r"(phase) : "memory");
#elif __CUDA_ARCH__ >= 800
    asm volatile("{ .reg .pred done;\n"
                 "again: mbarrier.test_wait.parity.shared.b64 done, [%0], %1;\n"
                 "@!done bra again; }" :: "r"(barrier), "r"(phase) : "memory");
#endif
}
