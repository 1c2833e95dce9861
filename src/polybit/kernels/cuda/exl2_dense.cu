// From the stream to dense columns, rows sorted as in the file (see stream.py).
//
// BFLOAT: 0 columns of fp16, as the format rounds weights; 1 those rounded again, to bf16.

#include "numbers.cuh"
#include "unpack.cuh"
#include "wide.cuh"

struct DenseBlock {  // 32 rows of every column
    u32 start;       // bytes from the start of a tile
    u32 header;      // bytes to the group's header
    u32 group;       // in the stream
    u32 bits;
};

__device__ __forceinline__ u32 low_twice(u32 pair) { return __byte_perm(pair, 0, 0x1010); }
__device__ __forceinline__ u32 high_twice(u32 pair) { return __byte_perm(pair, 0, 0x3232); }

__device__ __forceinline__ u32 scaled(u32 pair, u32 scale) {
    const u32 halves = mul2(pair, scale);
    if constexpr (BFLOAT) return pack_pair<1>(low_half(halves), high_half(halves));
    else return halves;
}

// Words that lie together, as exl2_repack leaves them: four of every lane, and again; the rest side by side.
template <int count>
__device__ __forceinline__ void read_words(const char* from, u32 lane, u32* words) {
#pragma unroll
    for (int i = 0; i + 4 <= count; i += 4) {
        const uint4 found = load_16(from + 128 * i + 16 * lane);
        words[i] = found.x, words[i + 1] = found.y, words[i + 2] = found.z, words[i + 3] = found.w;
    }
    constexpr int whole = count / 4 * 4;
    if constexpr (count - whole == 2) {
        const uint2 found = load_8(from + 128 * whole + 8 * lane);
        words[whole] = found.x, words[whole + 1] = found.y;
    }
    if constexpr (count - whole == 1) words[whole] = load_4(from + 128 * whole + 4 * lane);
}

template <int bits>
__device__ __forceinline__ void read_block(const char* from, u32 lane, u32 (&words)[2 * bits]) {
    if constexpr (bits < 4) read_words<2 * bits>(from, lane, words);
    else {
        read_words<bits>(from, lane, words);
        read_words<bits>(from + 128 * bits, lane, words + bits);
    }
}

// Eight rows of columns 0, 8, .. 56 from `out` on: what one lane of the stream holds of a block.
template <int bits>
__device__ __forceinline__ void write_lane(
    const u32 (&words)[2 * bits], u32 codes, u32 maximum, u16* out, u32 row_stride, u32 columns_left
) {
    const u32 scales[4] = {scale_pair<0>(codes, maximum), scale_pair<1>(codes, maximum),
                           scale_pair<2>(codes, maximum), scale_pair<3>(codes, maximum)};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        u32 v[16];
        unpack_centred<bits>(words + half * bits, v);
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            const u32 pair = scales[2 * half + c / 2], scale = c % 2 ? high_twice(pair) : low_twice(pair);
            const u32 column = 32 * half + 8 * c;
            store_16(column < columns_left, out + column * static_cast<u64>(row_stride), scaled(v[4 * c], scale),
                     scaled(v[4 * c + 1], scale), scaled(v[4 * c + 2], scale), scaled(v[4 * c + 3], scale));
        }
    }
}

// Lanes 4 g + q and 4 g + 4 + q, g even, take one of two neighbouring blocks each, and there what the stream has for both
// of them: so that eight lanes store 128 bytes of a column together.
template <int bits>
__device__ __forceinline__ void write_block(
    const char* from, uint2 codes, u32 maximum, u16* out, u32 row_stride, u32 columns_left
) {
    const u32 lane = threadIdx.x % 32 & ~4u;
    u32 even[2 * bits], odd[2 * bits];
    read_block<bits>(from, lane, even);
    read_block<bits>(from, lane + 4, odd);
    write_lane<bits>(even, codes.x, maximum, out, row_stride, columns_left);
    write_lane<bits>(odd, codes.y, maximum, out + row_stride, row_stride, columns_left);
}

// The columns of tiles first_tile .. as out [columns, row_stride]. One warp two blocks; grid (blocks / 16, tiles), 256
// threads: thread blocks that run at a time write whole columns. `maxima` as in exl2_decode, one entry a group of the
// stream.
extern "C" __global__ void __launch_bounds__(256, 4) exl2_dequantize(
    const char* stream, const DenseBlock* blocks, const u32* maxima, u16* out, u32 num_blocks, u32 num_columns,
    u32 row_stride, u32 first_tile, u64 tile_bytes
) {
    const u32 lane = threadIdx.x % 32, index = 2 * (blockIdx.x * 8 + threadIdx.x / 32) + lane / 4 % 2;
    if (index >= num_blocks) return;
    const u32 tile = first_tile + blockIdx.y, column = lane / 8 * 2;
    const uint4 block = load_16(blocks + index);
    const char* start = stream + tile * tile_bytes;
    const uint2 codes = load_8(start + block.y + 4 * column);
    const u32 maximum = load_4(maxima + block.z);
    u16* target = out + static_cast<u64>(TILE_COLUMNS * blockIdx.y + column) * row_stride + 32 * index + 8 * (lane % 4);
    const u32 left = num_columns - TILE_COLUMNS * tile;  // a multiple of 8
    const char* from = start + block.x;
    switch (block.w) {
        case 2: write_block<2>(from, codes, maximum, target, row_stride, left); break;
        case 3: write_block<3>(from, codes, maximum, target, row_stride, left); break;
        case 4: write_block<4>(from, codes, maximum, target, row_stride, left); break;
        case 5: write_block<5>(from, codes, maximum, target, row_stride, left); break;
        case 6: write_block<6>(from, codes, maximum, target, row_stride, left); break;
        default: write_block<8>(from, codes, maximum, target, row_stride, left); break;
    }
}
