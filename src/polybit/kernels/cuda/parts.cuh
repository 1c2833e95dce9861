// What exl2_batch.cu and exl2_warpgroup.cu share: the sums of a thread block's warps, each with WARP_COLUMNS of its wide
// tile, and the launch that adds up those of several thread blocks, always in the same order.
//
// Compile-time: NT (tiles of 8 activation rows), WARPS (of a thread block, that have columns).

#pragma once

#include "overlap.cuh"
#include "tables.cuh"

constexpr int WARP_TILES = WARP_COLUMNS / 16;    // of the tensor cores
constexpr int LANE_SUMS = WARP_TILES * NT;  // of four numbers

struct Matrix {  // of the launch
    u32 first;   // 16-byte units from the stream's start
    u32 tile;    // units of a tile
    u32 tiles;
    u32 unused;
};

typedef float Sums[WARP_TILES][NT][4];  // columns 16 i + lane / 4 (and 8 further) of tokens 8 n + 2 (lane % 4) (and 1 further)

// Four numbers of a lane: columns `column` and 8 further of tokens `token` and the next.
__device__ __forceinline__ void put(
    const Output& output, const Tile& tile, u32 column, u32 token, u32 num_tokens, const float4& sums
) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        if (column + 8 * h >= tile_columns(tile)) continue;
        if (token < num_tokens) output.store(token, tile.column + column + 8 * h, h ? sums.z : sums.x);
        if (token + 1 < num_tokens) output.store(token + 1, tile.column + column + 8 * h, h ? sums.w : sums.y);
    }
}

__device__ __forceinline__ u32 column_of(u32 warp, u32 i) {
    return WARP_COLUMNS * warp + 16 * i + threadIdx.x % 32 / 4;
}

__device__ __forceinline__ u32 token_of(u32 n) { return 8 * n + 2 * (threadIdx.x % 4); }

// A warp's sums of a finished tile, which begin anew: to the output, or to the workspace if others work on the tile too.
__device__ __forceinline__ void store_tile(
    const Tile& tile, Sums& sums, const Output& output, float4* workspace, u32 num_tokens
) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const bool alone = tile_parts(tile) == 1;
    float4* part = workspace + (tile.slot * WARPS + warp) * LANE_SUMS * 32 + lane;
#pragma unroll
    for (int i = 0; i < WARP_TILES; ++i) {
#pragma unroll
        for (int n = 0; n < NT; ++n) {
            float (&d)[4] = sums[i][n];
            const float4 four = {d[0], d[1], d[2], d[3]};
            if (alone) put(output, tile, column_of(warp, i), token_of(n), num_tokens, four);
            else part[(i * NT + n) * 32] = four;
            d[0] = d[1] = d[2] = d[3] = 0.f;
        }
    }
}

// Adds up the parts of tiles that several thread blocks worked on. Grid (tiles, WARPS, WARP_TILES), NT * 32 threads.
extern "C" __global__ void exl2_add_parts(
    const Tile* tiles, const float4* workspace, void* out, const void* residual, u32 num_tokens, u32 out_stride,
    u32 out_is_float
) {
    let_next_grid_start();
    const Tile tile = tiles[blockIdx.x];
    const u32 warp = blockIdx.y, i = blockIdx.z, stride = WARPS * LANE_SUMS * 32;
    const float4* part = workspace + (tile_first_slot(tile) * WARPS + warp) * LANE_SUMS * 32 + i * NT * 32 + threadIdx.x;
    wait_for_previous_grid();
    float4 sum = {0.f, 0.f, 0.f, 0.f};
#pragma unroll 4
    for (u32 p = 0; p < tile_parts(tile); ++p) {
        const float4 four = __ldcg(part + p * stride);
        sum.x += four.x, sum.y += four.y, sum.z += four.z, sum.w += four.w;
    }
    const Output output = {out, residual, out_stride, out_is_float != 0};
    put(output, tile, column_of(warp, i), token_of(threadIdx.x / 32), num_tokens, sum);
}
