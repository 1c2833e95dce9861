// Activations of gated products, by number as in decode.py: ACTIVATIONS.

#pragma once

#include "unpack.cuh"

template <int number>
__device__ __forceinline__ float activate(float x) {
    if constexpr (number == 0) return __fdividef(x, 1.f + __expf(-x));
    else if constexpr (number == 1) return 0.5f * x * (1.f + erff(x * 0.70710678118654752f));
    else if constexpr (number == 2) return 0.5f * x * (1.f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    else return fmaxf(x, 0.f);
}

__device__ __forceinline__ float activate(float x, u32 number) {
    switch (number) {
        case 0: return activate<0>(x);
        case 1: return activate<1>(x);
        case 2: return activate<2>(x);
        default: return activate<3>(x);
    }
}
