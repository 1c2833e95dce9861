// Overlap of neighbouring launches, where cards have it (programmatic dependent launch): a kernel that says so early lets
// the next one start beside it, and that one waits before it reads what others wrote, or writes anything.

#pragma once

__device__ __forceinline__ void wait_for_previous_grid() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void let_next_grid_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
