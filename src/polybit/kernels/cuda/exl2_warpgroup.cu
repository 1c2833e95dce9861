// Products of up to 64 activation rows with streamed low-bit matrices, each weight read and unpacked once: what
// exl2_batch.cu does, by the instructions of Hopper's warpgroups (compute capability 9.0 alone).
//
//   out[t, n] = sum_k x[t, k] * w[k, n]  (+ residual[t, n])
//
// with w = (q - 2^(bits - 1)) * scale[group(k), n] rounded to fp16 (format sections 3, 4), sums in fp32. A thread block
// takes a run of rows of neighbouring tiles of 64 columns, half a tile for each warp. One warp more brings weights and
// activations to shared memory. Weights go from registers into `wgmma`, whose 64 rows are 16 columns of each of four
// warps; activations stay in shared memory. While the tensor cores work, the warps unpack what comes next.
//
// Compile-time: NT (tiles of 8 activation rows), WARPS (of a thread block, that have columns), STAGES (chunks in shared
// memory), CHUNK (blocks of 32 rows in one, at most), REGISTERS (of a thread).

#include "fragments.cuh"
#include "overlap.cuh"
#include "ring.cuh"
#include "tables.cuh"

constexpr int WARP_COLUMNS = TILE_COLUMNS / 2;
constexpr int TILES = WARPS / 2;

#include "parts.cuh"

constexpr int WEIGHT_BYTES = 2048 + CHUNK * HEADER_BYTES;  // of a tile in a chunk
constexpr int INPUT_BYTES = 512 * NT * CHUNK;
constexpr int SLOT_BYTES = TILES * WEIGHT_BYTES + INPUT_BYTES;

// ---- barriers

__device__ __forceinline__ void make_barriers(u32 barriers) {
    if (threadIdx.x < STAGES) {
        const u32 filled = barriers + 16 * threadIdx.x;
        asm volatile("mbarrier.init.shared.b64 [%0], 1;" :: "r"(filled) : "memory");
        asm volatile("mbarrier.init.shared.b64 [%0], %1;" :: "r"(filled + 8), "n"(32 * WARPS) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();
}

__device__ __forceinline__ void expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" :: "r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" :: "r"(barrier) : "memory");
}

__device__ __forceinline__ void copy_bulk(u32 target, const char* source, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 :: "r"(target), "l"(source), "r"(bytes), "r"(barrier) : "memory");
}

struct Ring {
    u32 memory;    // shared address
    u32 barriers;  // two a slot: of bytes that have arrived, and of lanes that have read them (see exl2_batch.cu)

    __device__ __forceinline__ u32 address(const Place& place) const { return memory + SLOT_BYTES * place.slot; }
    __device__ __forceinline__ u32 filled(const Place& place) const { return barriers + 16 * place.slot; }
    __device__ __forceinline__ u32 emptied(const Place& place) const { return filled(place) + 8; }
};

// ---- the warp that brings chunks: each lane below TILES a tile's weights, the next the activations

struct Bringer {
    Ring ring;
    const char* stream;
    const char* x;  // [blocks of 32 sorted rows][2][2][token_tiles][8][8] fp16
    u32 token_tiles;
    const Matrix* matrices;
    u32 num_matrices;

    __device__ __forceinline__ void bring(const Run* runs) const {
        fill(runs, STAGES, true, false);
        wait_for_previous_grid();
        fill(runs, STAGES, false, true);
        fill(runs, 0xffffffff, true, true);
    }

    // The first `most` chunks, or all that come after the first STAGES.
    __device__ __forceinline__ void fill(const Run* runs, u32 most, bool want_weights, bool want_inputs) const {
        const u32 lane = threadIdx.x % 32;
        u32 skip = want_weights && want_inputs ? STAGES : 0, left = most;
        Place target = {0, 0};
        for (Run run = *runs; run_count(run) != 0 && left > 0; run = *++runs) {
            u32 m = 0;
            while (m + 1 < num_matrices && run.source >= matrices[m + 1].first) ++m;
            const Matrix matrix = matrices[m];
            const u32 first_tile = (run.source - matrix.first) / matrix.tile;
            const u32 tiles = min(static_cast<u32>(TILES), matrix.tiles - first_tile);
            const u32 groups = run_groups(run), blocks = run_blocks(run) * groups;
            const u32 bytes = 256 * run_bits(run) * blocks + HEADER_BYTES * groups;
            const u32 input_bytes = 512 * token_tiles * blocks;
            const char* source = stream + 16ull * (run.source + min(lane, tiles - 1) * matrix.tile);
            const char* input = x + static_cast<u64>(run.block & 0xffff) * 512 * token_tiles;
            for (u32 i = run_count(run); i > 0 && left > 0; --i, source += bytes, input += input_bytes) {
                if (skip == 0) {
                    const u32 at = ring.address(target), filled = ring.filled(target);
                    if (want_weights) {
                        wait_for(ring.emptied(target), target.phase ^ 1);  // which a new barrier lets pass
                        if (lane == 0) expect(filled, bytes * tiles + input_bytes);
                        __syncwarp();
                        if (lane < tiles) copy_bulk(at + lane * WEIGHT_BYTES, source, bytes, filled);
                    }
                    if (want_inputs && lane == TILES) {
                        copy_bulk(at + TILES * WEIGHT_BYTES, input, input_bytes, filled);
                    }
                } else {
                    --skip;
                }
                target.move_on();
                --left;
            }
        }
    }
};

// ---- wgmma

// Registers that come next were written by other instructions.
__device__ __forceinline__ void begin_multiplying() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void end_multiplying() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int pending>
__device__ __forceinline__ void wait_for_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(pending) : "memory");
}

// Activations of 16 rows at a shared address: core matrices of 8 tokens by 16 bytes, `next` bytes to those of the next 8 rows.
__device__ __forceinline__ u64 descriptor(u32 address, u32 next) {
    return static_cast<u64>((address & 0x3ffff) >> 4) | static_cast<u64>(next >> 4) << 16 | static_cast<u64>(128 >> 4) << 32;
}

#define FOUR(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])

// d += 16 columns of each warp by 16 rows, by 8 NT tokens
__device__ __forceinline__ void multiply_group(float (&d)[NT][4], u32 a0, u32 a1, u32 a2, u32 a3, u64 b) {
#if NT == 4
    asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, {%16,%17,%18,%19}, %20, 1, 1, 1, 0;"
                 : FOUR(0), FOUR(1), FOUR(2), FOUR(3) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));
#elif NT == 8
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,"
                 "%27,%28,%29,%30,%31}, {%32,%33,%34,%35}, %36, 1, 1, 1, 0;"
                 : FOUR(0), FOUR(1), FOUR(2), FOUR(3), FOUR(4), FOUR(5), FOUR(6), FOUR(7)
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));
#else
#error "NT is 4 or 8"
#endif
}

// ---- one chunk

struct Taker {
    Ring ring;
    u32 input_stride;  // bytes from 8 rows of activations to the next 8
    Place current;

    // 32 rows by the warp's 32 columns; products of at most one such are unfinished afterwards.
    template <int bits>
    __device__ __forceinline__ void half_block(u32 at, u32 half, const u32 (&scales)[2], u32 x_at, Sums& sums) const {
        u32 words[bits], v[16];
        load_half<bits>(words, at, half);
        unpack_centred<bits>(words, v);
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            const u32 scale = c % 2 ? high_twice(scales[c / 2]) : low_twice(scales[c / 2]);
#pragma unroll
            for (int j = 0; j < 4; ++j) v[4 * c + j] = mul2(v[4 * c + j], scale);
        }
        const u64 near = descriptor(x_at, input_stride), far = descriptor(x_at + 2 * input_stride, input_stride);
        begin_multiplying();
#pragma unroll
        for (int i = 0; i < 2; ++i) multiply_group(sums[i], v[8 * i], v[8 * i + 4], v[8 * i + 1], v[8 * i + 5], near);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            multiply_group(sums[i], v[8 * i + 2], v[8 * i + 6], v[8 * i + 3], v[8 * i + 7], far);
        }
        end_multiplying();
        wait_for_products<1>();
    }

    // All chunks of a run, of groups of `num_blocks` blocks each.
    template <int bits, int num_blocks>
    __device__ __forceinline__ void take(const Run& run, const u32* maxima, Sums& sums) {
        const u32 lane = threadIdx.x % 32, half = threadIdx.x / 32 % 2, num_groups = run_groups(run);
        const u32* maximum = maxima + (run.group & 0xffff);
        u32 groups_left = run_count(run) * num_groups, largest = *maximum;
#pragma unroll 1
        for (u32 left = run_count(run); left > 0; --left) {
            wait_for(ring.filled(current), current.phase);
            u32 at = ring.address(current) + threadIdx.x / 64 * WEIGHT_BYTES;
            u32 x_at = ring.address(current) + TILES * WEIGHT_BYTES;
#pragma unroll 1
            for (u32 g = num_groups; g > 0; --g) {
                const u32 codes = load1(at + lane / 4 * 4) >> 8 * half;
                const u32 scales[2] = {scale_pair<0>(codes, largest), scale_pair<1>(codes, largest)};
                if (--groups_left > 0) largest = *++maximum;
                at += HEADER_BYTES;
#pragma unroll
                for (int b = 0; b < num_blocks; ++b, at += 256 * bits, x_at += 4 * input_stride) {
                    half_block<bits>(at, half, scales, x_at, sums);
                }
                wait_for_products<0>();  // none may be unfinished at a branch, or the compiler waits for each
            }
            arrive(ring.emptied(current));
            current.move_on();
        }
    }

    __device__ __forceinline__ void take(const Run& run, const u32* maxima, Sums& sums) {
        switch (run.shape & 0xff) {  // what _runs in schedule.py makes
#define FORM(bits, blocks) \
    case bits | blocks << 4: take<bits, blocks>(run, maxima, sums); break;
            FORM(2, 1)
            FORM(2, 2)
            FORM(3, 1)
            FORM(3, 2)
            FORM(4, 1)
            FORM(4, 2)
            FORM(5, 1)
            FORM(6, 1)
            FORM(8, 1)
            default: __trap();
        }
    }
};

// runs [blocks, num_runs], the last of each thread block empty; tiles [blocks, num_tiles] in the order of its runs;
// maxima [groups]; x from gather.cu, FORM 2; out and residual [num_tokens, out_stride]; workspace
// [slots][WARPS][LANE_SUMS][32] of four numbers.
extern "C" __global__ void __maxnreg__(REGISTERS) exl2_warpgroup(
    const char* stream, const Run* runs, const Tile* tiles, const Matrix* matrices, u32 num_matrices, const u32* maxima,
    const char* x, void* out, const void* residual, float4* workspace, u32 num_runs, u32 num_tiles,
    u32 num_tokens, u32 out_stride, u32 out_is_float
) {
    extern __shared__ __align__(128) char memory[];
    __shared__ __align__(8) u64 barriers[2 * STAGES];
    const Run* own_runs = runs + blockIdx.x * num_runs;
    const Ring ring = {shared_address(memory), shared_address(barriers)};
    const u32 token_tiles = (num_tokens + 7) / 8;
    make_barriers(ring.barriers);
    let_next_grid_start();
    if (threadIdx.x >= 32 * WARPS) {
        Bringer{ring, stream, x, token_tiles, matrices, num_matrices}.bring(own_runs);
        return;
    }
    wait_for_previous_grid();
    const Tile* tile = tiles + blockIdx.x * num_tiles;
    const Output output = {out, residual, out_stride, out_is_float != 0};
    Taker taker = {ring, 128 * token_tiles, {0, 0}};
    Sums sums = {};
    for (Run run = *own_runs; run_count(run) != 0; run = *++own_runs) {
        taker.take(run, maxima, sums);
        if (!run_ends_tile(run)) continue;
        store_tile(*tile, sums, output, workspace, num_tokens);
        ++tile;
    }
}
