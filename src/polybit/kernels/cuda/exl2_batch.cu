// Products of up to 64 activation rows with streamed low-bit matrices, each weight read and unpacked once.
//
//   out[t, n] = sum_k x[t, k] * w[k, n]  (+ residual[t, n])
//
// with w = (q - 2^(bits - 1)) * scale[group(k), n] rounded to fp16 (format sections 3, 4), sums in fp32. A thread block
// takes a run of rows of neighbouring tiles: its warps share the activations of those rows, which pass through shared
// memory with the weights, and each has a tile of 64 columns. Thread blocks that work on the same tiles leave their sums in
// a workspace, and a second launch adds them up, always in the same order.
//
// Compile-time: NT (tiles of 8 activation rows), WARPS (of a thread block), STAGES (chunks in shared memory), CHUNK (blocks
// of 32 rows in one, at most: 2 or 4), BLOCKS (thread blocks of a multiprocessor).

#include "fragments.cuh"
#include "overlap.cuh"
#include "ring.cuh"
#include "tables.cuh"

constexpr int WARP_COLUMNS = TILE_COLUMNS;

#include "parts.cuh"

constexpr int MAX_TOKENS = 8 * NT;
constexpr int WEIGHT_BYTES = 2048 + CHUNK * HEADER_BYTES;  // of a tile in a chunk: at most as many groups
constexpr int INPUT_BYTES = 64 * MAX_TOKENS * CHUNK;
constexpr int SLOT_BYTES = WARPS * WEIGHT_BYTES + INPUT_BYTES;

__device__ __forceinline__ u32 own_tile() { return threadIdx.x / 32; }

// ---- chunks on their way to shared memory

// Warps may be a chunk apart: nobody waits for the slowest but who wants the slot of the chunk before the last.
constexpr int SLACK = 1;
constexpr int AHEAD = STAGES - SLACK;  // chunks asked for and not yet read

// Two barriers a slot where there are any: of copies that have arrived, and of lanes that have read them. Every lane
// speaks for itself, which costs nothing that can be measured and is what compute-sanitizer can follow.
__device__ __forceinline__ void make_barriers(u32 barriers) {
#if __CUDA_ARCH__ >= 800
    if (threadIdx.x < STAGES) {
        const u32 filled = barriers + 16 * threadIdx.x;
        asm volatile("mbarrier.init.shared.b64 [%0], %1;" :: "r"(filled), "n"(32 * WARPS) : "memory");
        asm volatile("mbarrier.init.shared.b64 [%0], %1;" :: "r"(filled + 8), "n"(32 * WARPS) : "memory");
    }
    __syncthreads();
#endif
}

__device__ __forceinline__ void arrive_after_copies(u32 barrier) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" :: "r"(barrier) : "memory");
#endif
}

__device__ __forceinline__ void arrive(u32 barrier) {
#if __CUDA_ARCH__ >= 800
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" :: "r"(barrier) : "memory");
#endif
}

struct Feed {
    const char* stream;
    const char* x;        // [blocks of 32 sorted rows][num_tokens][32] fp16
    u32 num_tokens;
    const Matrix* matrices;
    u32 num_matrices;
    const Run* next;      // run to be asked for
    u32 memory;           // shared address of the ring
    u32 barriers;         // and of its barriers
    const char* source;   // of the next chunk in the warp's own tile
    u32 bytes;            // of a chunk there; 0: the matrix has no such tile
    u32 block, blocks;    // first block of 32 sorted rows of the next chunk, and how many
    u32 chunks_left;      // of the run
    Place target, current;  // to be filled and to be read

    __device__ __forceinline__ void next_run() {
        const Run run = *next;
        chunks_left = run_count(run);
        if (chunks_left == 0) return;  // after the last
        ++next;
        u32 m = 0;
        while (m + 1 < num_matrices && run.source >= matrices[m + 1].first) ++m;
        const Matrix matrix = matrices[m];
        const bool is_there = (run.source - matrix.first) / matrix.tile + own_tile() < matrix.tiles;
        const u32 groups = run_groups(run);
        blocks = run_blocks(run) * groups;
        source = stream + 16ull * (run.source + own_tile() * matrix.tile);
        bytes = is_there ? 256 * run_bits(run) * blocks + HEADER_BYTES * groups : 0;
        block = run.block & 0xffff;
    }

    __device__ __forceinline__ void ask_for_weights(u32 at) const {
        const u32 to = at + own_tile() * WEIGHT_BYTES, first = 16 * (threadIdx.x % 32);
#pragma unroll
        for (u32 i = 0; i < WEIGHT_BYTES; i += 512) {
            if (i + first < bytes) copy16(to + i + first, source + i + first);
        }
    }

    // To [blocks][MAX_TOKENS][32]
    __device__ __forceinline__ void ask_for_inputs(u32 at) const {
        constexpr u32 pieces = 4 * MAX_TOKENS;  // of 16 bytes in a block
#pragma unroll
        for (u32 i = threadIdx.x; i < pieces * CHUNK; i += 32 * WARPS) {
            const u32 b = i / pieces, piece = i % pieces;
            if (b >= blocks || piece >= 4 * num_tokens) continue;
            copy16(at + WARPS * WEIGHT_BYTES + 16 * i, x + 64ull * num_tokens * (block + b) + 16 * piece);
        }
    }

    __device__ __forceinline__ u32 address(const Place& place) const { return memory + SLOT_BYTES * place.slot; }
    __device__ __forceinline__ u32 filled(const Place& place) const { return barriers + 16 * place.slot; }
    __device__ __forceinline__ u32 emptied(const Place& place) const { return filled(place) + 8; }

    // The next chunk: its weights, its activations, or both, to a slot that nobody reads any more.
    __device__ __forceinline__ void ask(bool want_weights, bool want_inputs) {
        if (chunks_left == 0) next_run();
        if (chunks_left == 0) return;
        const u32 at = address(target);
        if (want_weights) {
            wait_for(emptied(target), target.phase ^ 1);  // which a new barrier lets pass
            ask_for_weights(at);
        }
        if (want_inputs) {
            ask_for_inputs(at);
            arrive_after_copies(filled(target));
        }
        source += bytes;
        block += blocks;
        --chunks_left;
        target.move_on();
    }

    // Ask for the first chunks of `runs`: their weights, which no launch writes, or their activations.
    __device__ __forceinline__ void fill(const Run* runs, bool want_weights, bool want_inputs) {
        next = runs;
        chunks_left = 0;
        target = current = {0, 0};
#pragma unroll 1
        for (int i = 0; i < AHEAD; ++i) ask(want_weights, want_inputs);
    }

    // Shared address of the next chunk, when it is there.
    __device__ __forceinline__ u32 take() const {
#if __CUDA_ARCH__ >= 800
        wait_for(filled(current), current.phase);
#else
        __syncthreads();
#endif
        return address(current);
    }

    // The lane has read it.
    __device__ __forceinline__ void release() {
        arrive(emptied(current));
        current.move_on();
        ask(true, true);
    }
};

// ---- one chunk

// 32 rows by 32 columns, half a block.
template <int bits, int half>
__device__ __forceinline__ void half_block(const u32* words, const u32 (&scales)[4], const u32 (&x)[NT][4], Sums& sums) {
    u32 v[16];
    unpack_centred<bits>(words, v);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
        const u32 pair = scales[2 * half + c / 2], scale = c % 2 ? high_twice(pair) : low_twice(pair);
#pragma unroll
        for (int j = 0; j < 4; ++j) v[4 * c + j] = mul2(v[4 * c + j], scale);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int n = 0; n < NT; ++n) {
            float (&d)[4] = sums[2 * half + i][n];
            multiply(d, v[8 * i], v[8 * i + 4], v[8 * i + 1], v[8 * i + 5], x[n][0], x[n][1], d[0], d[1], d[2], d[3]);
            multiply(d, v[8 * i + 2], v[8 * i + 6], v[8 * i + 3], v[8 * i + 7], x[n][2], x[n][3], d[0], d[1], d[2], d[3]);
        }
    }
}

// All chunks of a run: `num_groups` groups of `num_blocks` blocks each.
template <int bits, int num_blocks, int num_groups>
__device__ __forceinline__ void take(const Run& run, const u32* maxima, Feed& feed, Sums& sums) {
    const u32 lane = threadIdx.x % 32;
    const u32* maximum = maxima + (run.group & 0xffff);
#pragma unroll 1
    for (u32 left = run_count(run); left > 0; --left, maximum += num_groups) {
        u32 largest[num_groups];
#pragma unroll
        for (int g = 0; g < num_groups; ++g) largest[g] = maximum[g];
        const u32 chunk = feed.take();
        u32 at = chunk + own_tile() * WEIGHT_BYTES;
        u32 x_at = chunk + WARPS * WEIGHT_BYTES + 64 * (lane / 4) + 16 * (lane % 4);
#pragma unroll
        for (int g = 0; g < num_groups; ++g) {
            const u32 codes = load1(at + lane / 4 * 4);
            const u32 scales[4] = {scale_pair<0>(codes, largest[g]), scale_pair<1>(codes, largest[g]),
                                   scale_pair<2>(codes, largest[g]), scale_pair<3>(codes, largest[g])};
            at += HEADER_BYTES;
#pragma unroll
            for (int b = 0; b < num_blocks; ++b, at += 256 * bits, x_at += 64 * MAX_TOKENS) {
                u32 x[NT][4], words[2 * bits];
#pragma unroll
                for (int n = 0; n < NT; ++n) load4(x[n], x_at + 512 * n);
                load_words<bits>(words, at);
                half_block<bits, 0>(words, scales, x, sums);
                half_block<bits, 1>(words + bits, scales, x, sums);
            }
        }
        feed.release();
    }
}

__device__ __forceinline__ void take(const Run& run, const u32* maxima, Feed& feed, Sums& sums) {
    switch (run.shape & 0x7ff) {  // what _runs in schedule.py makes
#define FORM(bits, blocks, groups) \
    case bits | blocks << 4 | groups << 8: take<bits, blocks, groups>(run, maxima, feed, sums); break;
#if CHUNK == 4
        FORM(2, 2, 2)
        FORM(2, 1, 4)
#endif
        FORM(2, 2, 1)
        FORM(2, 1, 2)
        FORM(2, 1, 1)
        FORM(3, 2, 1)
        FORM(3, 1, 2)
        FORM(3, 1, 1)
        FORM(4, 2, 1)
        FORM(4, 1, 2)
        FORM(4, 1, 1)
        FORM(5, 1, 1)
        FORM(6, 1, 1)
        FORM(8, 1, 1)
        default: __trap();
    }
}

// runs [blocks, num_runs], the last of each thread block empty; tiles [blocks, num_tiles] in the order of its runs;
// maxima [groups]; x from gather.cu, FORM 1; out and residual [num_tokens, out_stride]; workspace [slots][WARPS][LANE_SUMS][32] of
// four numbers.
extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS) exl2_batch(
    const char* stream, const Run* runs, const Tile* tiles, const Matrix* matrices, u32 num_matrices, const u32* maxima,
    const char* x, void* out, const void* residual, float4* workspace, u32 num_runs, u32 num_tiles,
    u32 num_tokens, u32 out_stride, u32 out_is_float
) {
    extern __shared__ __align__(128) char memory[];
    __shared__ __align__(8) u64 barriers[2 * STAGES];
    const Run* own_runs = runs + blockIdx.x * num_runs;
    const Tile* tile = tiles + blockIdx.x * num_tiles;
    const Output output = {out, residual, out_stride, out_is_float != 0};
    Feed feed = {stream, x, num_tokens, matrices, num_matrices};
    feed.memory = shared_address(memory);
    feed.barriers = shared_address(barriers);
    make_barriers(feed.barriers);

    let_next_grid_start();
    feed.fill(own_runs, true, false);
    wait_for_previous_grid();
    feed.fill(own_runs, false, true);
    Sums sums = {};
    for (Run run = *own_runs; run_count(run) != 0; run = *++own_runs) {
        take(run, maxima, feed, sums);
        if (!run_ends_tile(run)) continue;
        store_tile(*tile, sums, output, workspace, num_tokens);
        ++tile;
    }
}

