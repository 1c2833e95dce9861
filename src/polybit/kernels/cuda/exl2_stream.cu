// From a file's words to the stream that kernels read (see stream.py).

#include "unpack.cuh"

struct Block {        // 32 rows of every column
    u32 stream;       // bytes from the start of a tile
    u32 header;       // bytes to the group's header; the group's first block writes it
    u32 packed_row;   // in the file
    u32 group;        // in the file | bits << 16 | first of its group << 24
};

__device__ __forceinline__ u32 block_bits(const Block& block) { return block.group >> 16 & 0xff; }
__device__ __forceinline__ bool block_is_first(const Block& block) { return block.group >> 24; }

// Rows 8 quad .. 8 quad + 7 of one column's block of `bits` words, as four pairs of fields 16 bits apart.
template <int bits>
__device__ __forceinline__ void column_pairs(const u32 (&words)[bits], u32 quad, u32 (&pairs)[4]) {
#pragma unroll
    for (int p = 0; p < 4; ++p) {
        pairs[p] = 0;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            u32 value = 0;
#pragma unroll
            for (int q = 0; q < 4; ++q) {  // constant places, so that the words stay in registers
                constexpr u32 mask = (1u << bits) - 1;
                const int at = (8 * q + 2 * p + r) * bits, word = at / 32, shift = at % 32;
                u32 found = words[word] >> shift;
                if (shift + bits > 32) found |= words[word + 1 < bits ? word + 1 : word] << (32 - shift);
                if (q == quad) value = found & mask;
            }
            pairs[p] |= value << (16 * r);
        }
    }
}

// The inverse of Unpack<bits>: pair i of 16 into the lane's words.
template <int bits>
__device__ __forceinline__ void place_pair(u32 (&words)[bits], int i, u32 pair) {
    if constexpr (bits == 2) words[i / 8] |= pair << (2 * (i % 8));
    if constexpr (bits == 4) words[i / 4] |= pair << (4 * (i % 4));
    if constexpr (bits == 8) words[i / 2] |= pair << (8 * (i % 2));
    if constexpr (bits == 3 || bits == 5) {
        constexpr int per_word = 15 / bits;
        if (i < 15) words[i / per_word] |= pair << (bits * (i % per_word));
        else {
#pragma unroll
            for (int j = 0; j < bits; ++j) words[j] |= (pair >> j & 0x00010001) << 15;
        }
    }
    if constexpr (bits == 6) {
        const int set = i / 8 * 3, r = i % 8;
        if (r < 6) words[set + r / 2] |= pair << (6 * (r % 2));
        else {
            words[set + r - 6] |= (pair & 0x000f000f) << 12;
            words[set + 2] |= (pair >> 4 & 0x00030003) << (r == 6 ? 12 : 14);
        }
    }
}

template <int bits>
__device__ void repack_block(
    const u32* q_weight, u32 num_columns, const u32* order, u32 tile, u32 packed_row, char* target
) {
    const u32 lane = threadIdx.x % 32, quad = lane % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        u32 packed[bits] = {};
#pragma unroll
        for (int c = 0; c < 4; ++c) {  // tile of 16 columns c / 2 of this half, its columns c % 2
            const u32 place = TILE_COLUMNS * tile + 32 * half + 8 * c + lane / 4;
            u32 words[bits], pairs[4];
            if (place < num_columns) {
                const u32 column = order == nullptr ? place : order[place];
#pragma unroll
                for (int w = 0; w < bits; ++w) words[w] = q_weight[static_cast<u64>(packed_row + w) * num_columns + column];
                column_pairs<bits>(words, quad, pairs);
            } else {
#pragma unroll
                for (int p = 0; p < 4; ++p) pairs[p] = 0x00010001u << (bits - 1);
            }
#pragma unroll
            for (int p = 0; p < 4; ++p) place_pair<bits>(packed, 4 * c + p, pairs[p]);
        }
        // Two and three bits: both halves of a lane side by side, 16 bytes and 8; else half after half.
        u32* out = reinterpret_cast<u32*>(target + (bits < 4 ? 0 : half * 128 * bits));
#pragma unroll
        for (int w = 0; w < bits; ++w) {
            const int i = bits < 4 ? half * bits + w : w;
            const int rest = (bits < 4 ? 2 * bits : bits) - i / 4 * 4;  // words from this chunk of four on
            const int width = rest < 4 ? rest : 4;
            out[i / 4 * 128 + lane * width + i % 4] = packed[w];
        }
    }
}

// One warp a block of 32 rows by 64 columns. q_weight [R, num_columns], q_scale [G, num_columns / 8]; `order`
// [num_columns] is the file's column at each place, null: as they are. Grid (tiles, blocks / 4), 128 threads.
extern "C" __global__ void exl2_repack(
    const u32* q_weight, const u32* q_scale, const u32* order, const Block* blocks, char* stream, u32 num_blocks,
    u32 num_columns, u64 tile_bytes
) {
    const u32 index = blockIdx.y * 4 + threadIdx.x / 32, lane = threadIdx.x % 32, tile = blockIdx.x;
    if (index >= num_blocks) return;
    const Block block = blocks[index];
    char* start = stream + tile * tile_bytes;
    if (block_is_first(block) && lane < 8) {
        u32 codes = 0;
        for (u32 i = 0; i < 4; ++i) {
            for (u32 h = 0; h < 2; ++h) {
                const u32 place = TILE_COLUMNS * tile + 16 * i + 8 * h + lane;
                if (place >= num_columns) continue;
                const u32 column = order == nullptr ? place : order[place];
                const u32 word = q_scale[static_cast<u64>(block.group & 0xffff) * (num_columns / 8) + column / 8];
                codes |= (word >> (4 * (column % 8)) & 0xf) << (4 * i + 16 * h);
            }
        }
        reinterpret_cast<u32*>(start + block.header)[lane] = codes;
    }
    char* target = start + block.stream;
    switch (block_bits(block)) {
        case 2: repack_block<2>(q_weight, num_columns, order, tile, block.packed_row, target); break;
        case 3: repack_block<3>(q_weight, num_columns, order, tile, block.packed_row, target); break;
        case 4: repack_block<4>(q_weight, num_columns, order, tile, block.packed_row, target); break;
        case 5: repack_block<5>(q_weight, num_columns, order, tile, block.packed_row, target); break;
        case 6: repack_block<6>(q_weight, num_columns, order, tile, block.packed_row, target); break;
        default: repack_block<8>(q_weight, num_columns, order, tile, block.packed_row, target); break;
    }
}
