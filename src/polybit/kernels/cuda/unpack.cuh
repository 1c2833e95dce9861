// A lane's words to fp16 pairs, and scale codes to scales: what every kernel over the stream shares (see stream.py).

#pragma once

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;

constexpr int HEADER_BYTES = 32;   // a group's scale codes: 64 columns of 4 bits
constexpr int TILE_COLUMNS = 64;
constexpr u32 MAGIC = 0x64006400;  // half2 of 1024: an integer in its low mantissa bits adds itself

// ---- arithmetic on half2

__device__ __forceinline__ u32 low_twice(u32 pair) { return __byte_perm(pair, 0, 0x1010); }
__device__ __forceinline__ u32 high_twice(u32 pair) { return __byte_perm(pair, 0, 0x3232); }

template <u32 mask>
__device__ __forceinline__ u32 pick(u32 word) {  // (word & mask) | MAGIC
    u32 out;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(out) : "r"(word), "n"(mask), "n"(MAGIC));
    return out;
}

template <u32 mask>
__device__ __forceinline__ u32 pick_into(u32 word, u32 rest) {  // (word & mask) | rest
    u32 out;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(out) : "r"(word), "n"(mask), "r"(rest));
    return out;
}

__device__ __forceinline__ u32 fma2(u32 a, u32 b, u32 c) {
    u32 out;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
    return out;
}

__device__ __forceinline__ u32 mul2(u32 a, u32 b) {
    u32 out;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
    return out;
}

__device__ __forceinline__ u32 add2(u32 a, u32 b) {
    u32 out;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
    return out;
}

__device__ __forceinline__ float low_half(u32 pair) {
    float out;
    asm("{ .reg .b16 lo, hi; mov.b32 {lo, hi}, %1; cvt.f32.f16 %0, lo; }" : "=f"(out) : "r"(pair));
    return out;
}

__device__ __forceinline__ float high_half(u32 pair) {
    float out;
    asm("{ .reg .b16 lo, hi; mov.b32 {lo, hi}, %1; cvt.f32.f16 %0, hi; }" : "=f"(out) : "r"(pair));
    return out;
}

__device__ __forceinline__ u16 to_half(float x) {
    u16 out;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out) : "f"(x));
    return out;
}

__device__ constexpr u32 both(u32 half) { return half | half << 16; }

// The bits of 2^-shift and of -(1024 * 2^-shift + zero) as fp16; both are exact. `value` has at most 11 bits.
__device__ constexpr u32 half_of_power(int exponent) { return static_cast<u32>(exponent + 15) << 10; }

__device__ constexpr u32 half_of_integer(u32 value) {
    int exponent = 0;
    while ((value >> exponent) > 1) ++exponent;
    return static_cast<u32>(exponent + 15) << 10 | (value << (10 - exponent) & 0x3ff);
}

// half2 of 1024 + q * 2^shift  ->  half2 of q - 2^(bits - 1)
template <int bits, int shift>
__device__ __forceinline__ u32 centre(u32 pair) {
    constexpr u32 minus = both(0x8000 | half_of_integer((1024u >> shift) + (1u << (bits - 1))));
    if constexpr (shift == 0) return add2(pair, minus);
    else return fma2(pair, both(half_of_power(-shift)), minus);
}

// ---- unpacking: `bits` words of a lane to 16 pairs of neighbouring rows, as `stream.py` packs them

template <int bits>
struct Unpack;

template <>
struct Unpack<3> {
    static __device__ __forceinline__ void run(const u32* w, u32 (&v)[16]) {
#pragma unroll
        for (int j = 0; j < 3; ++j) {
            const u32 low = w[j], high = low >> 9;
            v[5 * j + 0] = centre<3, 0>(pick<both(0x007)>(low));
            v[5 * j + 1] = centre<3, 3>(pick<both(0x038)>(low));
            v[5 * j + 2] = centre<3, 6>(pick<both(0x1c0)>(low));
            v[5 * j + 3] = centre<3, 0>(pick<both(0x007)>(high));
            v[5 * j + 4] = centre<3, 3>(pick<both(0x038)>(high));
        }
        u32 last = pick<both(0x001)>(w[0] >> 15);
        last = pick_into<both(0x002)>(w[1] >> 14, last);
        last = pick_into<both(0x004)>(w[2] >> 13, last);
        v[15] = centre<3, 0>(last);
    }
};

template <>
struct Unpack<4> {
    static __device__ __forceinline__ void run(const u32* w, u32 (&v)[16]) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const u32 low = w[j], high = low >> 8;
            v[4 * j + 0] = centre<4, 0>(pick<both(0x00f)>(low));
            v[4 * j + 1] = centre<4, 4>(pick<both(0x0f0)>(low));
            v[4 * j + 2] = centre<4, 0>(pick<both(0x00f)>(high));
            v[4 * j + 3] = centre<4, 4>(pick<both(0x0f0)>(high));
        }
    }
};

template <>
struct Unpack<5> {
    static __device__ __forceinline__ void run(const u32* w, u32 (&v)[16]) {
#pragma unroll
        for (int j = 0; j < 5; ++j) {
            v[3 * j + 0] = centre<5, 0>(pick<both(0x01f)>(w[j]));
            v[3 * j + 1] = centre<5, 5>(pick<both(0x3e0)>(w[j]));
            v[3 * j + 2] = centre<5, 0>(pick<both(0x01f)>(w[j] >> 10));
        }
        u32 last = pick<both(0x001)>(w[0] >> 15);
        last = pick_into<both(0x002)>(w[1] >> 14, last);
        last = pick_into<both(0x004)>(w[2] >> 13, last);
        last = pick_into<both(0x008)>(w[3] >> 12, last);
        last = pick_into<both(0x010)>(w[4] >> 11, last);
        v[15] = centre<5, 0>(last);
    }
};

template <>
struct Unpack<6> {
    static __device__ __forceinline__ void run(const u32* w, u32 (&v)[16]) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const u32 *s = w + 3 * j;
#pragma unroll
            for (int i = 0; i < 3; ++i) {
                v[8 * j + 2 * i + 0] = centre<6, 0>(pick<both(0x03f)>(s[i]));
                v[8 * j + 2 * i + 1] = centre<6, 0>(pick<both(0x03f)>(s[i] >> 6));
            }
            v[8 * j + 6] = centre<6, 0>(pick_into<both(0x030)>(s[2] >> 8, pick<both(0x00f)>(s[0] >> 12)));
            v[8 * j + 7] = centre<6, 0>(pick_into<both(0x030)>(s[2] >> 10, pick<both(0x00f)>(s[1] >> 12)));
        }
    }
};

template <>
struct Unpack<8> {
    static __device__ __forceinline__ void run(const u32* w, u32 (&v)[16]) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            v[2 * j + 0] = centre<8, 0>(pick<both(0x0ff)>(w[j]));
            v[2 * j + 1] = centre<8, 0>(pick<both(0x0ff)>(w[j] >> 8));
        }
    }
};

// Two bits leave no time for centring: their pairs keep the magic number, pair p of a row of four as
// 1024 + q * 2^(2 p + 2). The activations are divided by that power, and each group's sum starts at what 1024 and the zero
// point will have added (see activations.cu).
template <>
struct Unpack<2> {
    static __device__ __forceinline__ void run(const u32* w, u32 (&v)[16]) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const u32 up = w[j] << 2, down = w[j] >> 6;
            v[8 * j + 0] = pick<both(0x00c)>(up);
            v[8 * j + 1] = pick<both(0x030)>(up);
            v[8 * j + 2] = pick<both(0x0c0)>(up);
            v[8 * j + 3] = pick<both(0x300)>(up);
            v[8 * j + 4] = pick<both(0x00c)>(down);
            v[8 * j + 5] = pick<both(0x030)>(down);
            v[8 * j + 6] = pick<both(0x0c0)>(down);
            v[8 * j + 7] = pick<both(0x300)>(down);
        }
    }
};

template <int bits>
__device__ __forceinline__ void unpack_centred(const u32* w, u32 (&v)[16]) {
    Unpack<bits>::run(w, v);
    if constexpr (bits == 2) {
#pragma unroll
        for (int i = 0; i < 16; i += 4) {
            v[i] = centre<2, 2>(v[i]);
            v[i + 1] = centre<2, 4>(v[i + 1]);
            v[i + 2] = centre<2, 6>(v[i + 2]);
            v[i + 3] = centre<2, 8>(v[i + 3]);
        }
    }
}

// ---- scales

// A lane's codes are one word of the group's header: tile of 16 columns i and its half h at bit 4 i + 16 h. Returns the
// scales of columns 16 i + lane / 4 and 8 further, as the format rounds them; `maximum` is half2 of the group's over 256.
template <int i>
__device__ __forceinline__ u32 scale_pair(u32 codes, u32 maximum) {
    constexpr u32 minus_1023 = both(0x8000 | half_of_integer(1023)), minus_63 = both(0x8000 | half_of_integer(63));
    const u32 word = i < 2 ? codes : codes >> 8;
    const u32 level = i % 2 ? fma2(pick<both(0x0f0)>(word), both(half_of_power(-4)), minus_63)
                            : add2(pick<both(0x00f)>(word), minus_1023);
    return mul2(mul2(level, level), maximum);
}
