// What schedule.py writes for thread blocks, and where they put their results.

#pragma once

#include "unpack.cuh"

// Groups of one form that one warp takes one after another, `groups` a chunk.
struct Run {
    u32 source;  // 16-byte units from the stream's start
    u32 shape;   // bits | blocks of a group << 4 | groups << 8 | last of its tile << 15 | chunks << 16
    u32 group;   // first entry in the table of maxima | first group of the activations << 16
    u32 block;   // first block of 32 rows | where its sums go << 16
};

struct Tile {    // what a thread block does to one tile of 64 columns
    u32 column;  // first of the output
    u32 sums;    // columns | first of the warps' sums << 16 | how many << 24; 0: no tile
    u32 slot;    // where the block's sum goes if others work on the tile too
    u32 parts;   // first slot of the tile << 8 | number of slots; 1: nobody else does
};

__device__ __forceinline__ u32 run_bits(const Run& run) { return run.shape & 0xf; }
__device__ __forceinline__ u32 run_blocks(const Run& run) { return run.shape >> 4 & 0xf; }
__device__ __forceinline__ u32 run_groups(const Run& run) { return run.shape >> 8 & 0x7; }
__device__ __forceinline__ bool run_ends_tile(const Run& run) { return run.shape >> 15 & 1; }
__device__ __forceinline__ u32 run_count(const Run& run) { return run.shape >> 16; }

struct Output {
    void* out;             // [num_tokens, stride], fp32 or fp16
    const void* residual;  // likewise; null: none
    u32 stride;
    bool is_float;

    __device__ __forceinline__ void store(u32 token, u32 column, float sum) const {
        const u64 place = static_cast<u64>(token) * stride + column;
        if (is_float) {
            if (residual != nullptr) sum += static_cast<const float*>(residual)[place];
            static_cast<float*>(out)[place] = sum;
        } else {
            if (residual != nullptr) sum += low_half(static_cast<const u16*>(residual)[place]);
            static_cast<u16*>(out)[place] = to_half(sum);
        }
    }
};

__device__ __forceinline__ u32 tile_columns(const Tile& tile) { return tile.sums & 0xffff; }
__device__ __forceinline__ u32 tile_parts(const Tile& tile) { return tile.parts & 0xff; }
__device__ __forceinline__ u32 tile_first_slot(const Tile& tile) { return tile.parts >> 8; }
