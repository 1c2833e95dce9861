// Products of a few activation rows with streamed low-bit matrices: what a thread block does of one.
//
//   out[t, n] = sum_k x[t, k] * v[k, n] * scale[group(k), n]  (+ residual[t, n])
//
// with v = q - 2^(bits - 1), products accumulated in fp32 per group and scaled there (format sections 3, 4). Weights are
// the A operand of m16n8k16, straight from registers: 16 output columns by 16 input rows; activations are B, prepared by
// activations.cuh. stream.py describes the bytes and schedule.py who works on which part of them.
//
// Compile-time: NT (tiles of 8 activation rows), ONE (there is one row), WARPS (of a thread block), SLOTS (chunks of a
// warp's ring), MAX_TILES (of a thread block).

#pragma once

#include "fragments.cuh"
#include "tables.cuh"

constexpr int MAX_BLOCKS = NT == 1 ? 4 : 2;             // of 32 rows in a chunk
constexpr int LANE_TOKENS = ONE ? 1 : 2;               // rows of the result that a lane holds, in each tile of 8
constexpr int MAX_TOKENS = ONE ? 1 : 8 * NT;
constexpr int WEIGHT_BYTES = 2048 + 4 * HEADER_BYTES;  // of a chunk: at most four groups, 2048 bytes of blocks
constexpr int INPUT_BYTES = (64 * MAX_TOKENS + (ONE ? 16 : 8 * MAX_TOKENS)) * MAX_BLOCKS;
constexpr int SLOT_BYTES = WEIGHT_BYTES + INPUT_BYTES;
constexpr int RING_BYTES = SLOTS * SLOT_BYTES;         // a warp's
constexpr int SUM_STRIDE = TILE_COLUMNS + 4;           // floats a token; the 4 keep lanes on different banks

// Bytes that the activations of one group begin with: {start, scale} of each token, padded to 16 (activations.cu).
__device__ __forceinline__ u32 input_header(u32 num_tokens) { return ONE ? 16 : (8 * num_tokens + 15) / 16 * 16; }

// ---- copies to shared memory: by the copy engine where there is one, else by the lanes

#if __CUDA_ARCH__ >= 900
constexpr bool BULK = true;
#else
constexpr bool BULK = false;
#endif

// `bytes`, a multiple of 16 and at most `limit`, by the whole warp; `barrier` hears of it where the copy engine works.
template <int limit>
__device__ __forceinline__ void copy(u32 target, const char* source, u32 bytes, u32 barrier) {
    if constexpr (BULK) {
#if __CUDA_ARCH__ >= 900
        if (threadIdx.x % 32 == 0) {
            asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                         :: "r"(target), "l"(source), "r"(bytes), "r"(barrier) : "memory");
        }
#endif
    } else {
        const u32 lane_bytes = threadIdx.x % 32 * 16;
#pragma unroll
        for (u32 i = 0; i < limit; i += 512) {
            if (i + lane_bytes < bytes) copy16(target + lane_bytes + i, source + lane_bytes + i);
        }
    }
}

__device__ __forceinline__ void expect_copies(u32 barrier, u32 bytes) {
#if __CUDA_ARCH__ >= 900
    if (threadIdx.x % 32 == 0) {
        asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" :: "r"(barrier), "r"(bytes) : "memory");
    }
#endif
}

__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800 && __CUDA_ARCH__ < 900
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Until the barrier's phase is over, or at most `pending` of the committed groups are unfinished.
template <int pending>
__device__ __forceinline__ void wait_for_copies(u32 barrier, u32 phase) {
#if __CUDA_ARCH__ >= 900
    asm volatile("{ .reg .pred done;\n"
                 "again: mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
                 "@!done bra again; }" :: "r"(barrier), "r"(phase) : "memory");
#elif __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" :: "n"(pending) : "memory");
    __syncwarp();
#else
    __syncwarp();
#endif
}

__device__ __forceinline__ void make_barriers(u32 address) {
#if __CUDA_ARCH__ >= 900
    const u32 barrier = address + 8 * (threadIdx.x % 32);
    if (threadIdx.x % 32 < SLOTS) {
        asm volatile("mbarrier.init.shared.b64 [%0], 1;" :: "r"(barrier) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncwarp();
#endif
}

// ---- one warp's bytes, in order, chunk by chunk through a ring in shared memory

struct Source {
    const char* address;
    u32 bytes;  // none after the last chunk
};

struct Ring {
    const char* stream;
    const char* inputs;
    u32 num_tokens;
    const Run* next;       // run to be requested
    const char* source;    // of the next chunk's weights
    const char* input;     // of its activations
    u32 chunks_left;       // of the run being requested
    u32 bytes, input_bytes;  // of a chunk
    u32 slot;              // shared address of the chunk to be read
    u32 barrier;           // of that slot
    u32 phase;
    u32 end;               // of the ring

    // memory: WARPS rings; barriers: of all warps
    __device__ __forceinline__ void place(const char* memory, const u64* barriers_of_all) {
        slot = shared_address(memory) + threadIdx.x / 32 * RING_BYTES;
        end = slot + RING_BYTES;
        barrier = shared_address(barriers_of_all) + threadIdx.x / 32 * SLOTS * 8;
        make_barriers(barrier);
    }

    // Ask for the weights of the first chunks of `runs`, which no launch writes. later: where their activations will be.
    __device__ __forceinline__ void fill_weights(const Run* runs, Source (&later)[SLOTS]) {
        next = runs;
        chunks_left = 0;
#pragma unroll
        for (int i = 0; i < SLOTS; ++i, move_on()) later[i] = request_weights();
        phase = 0;
    }

    __device__ __forceinline__ void fill_inputs(const Source (&later)[SLOTS]) {
#pragma unroll
        for (int i = 0; i < SLOTS; ++i, move_on()) request_inputs(later[i]);
        phase = 0;
    }

    __device__ __forceinline__ void next_run() {
        const Run run = *next;
        chunks_left = run_count(run);
        if (chunks_left == 0) return;  // after the last
        ++next;
        const u32 groups = run_groups(run), blocks = run_blocks(run) * groups, header = input_header(num_tokens);
        source = stream + 16ull * run.source;
        input = inputs + (run.group >> 16) * header + (run.block & 0xffff) * 64 * num_tokens;
        bytes = 256 * run_bits(run) * blocks + HEADER_BYTES * groups;
        input_bytes = 64 * num_tokens * blocks + header * groups;
    }

    // Fill the slot with the next chunk: its weights first. Returns where its activations are.
    __device__ __forceinline__ Source request_weights() {
        if (chunks_left == 0) next_run();
        if (chunks_left == 0) return {inputs, 0};
        expect_copies(barrier, bytes + input_bytes);
        copy<WEIGHT_BYTES>(slot, source, bytes, barrier);
        const Source activations = {input, input_bytes};
        source += bytes;
        input += input_bytes;
        --chunks_left;
        return activations;
    }

    __device__ __forceinline__ void request_inputs(const Source& activations) {
        if (activations.bytes != 0) {
            copy<INPUT_BYTES>(slot + WEIGHT_BYTES, activations.address, activations.bytes, barrier);
        }
        commit_copies();
    }

    __device__ __forceinline__ void await() const { wait_for_copies<SLOTS - 1>(barrier, phase); }

    __device__ __forceinline__ void move_on() {
        slot += SLOT_BYTES;
        barrier += 8;
        if (slot == end) {
            slot -= RING_BYTES;
            barrier -= 8 * SLOTS;
            phase ^= 1;
        }
    }

    // The slot's contents are in registers: it may be filled again.
    __device__ __forceinline__ void release() {
        __syncwarp();
        request_inputs(request_weights());
        move_on();
    }
};

// ---- one chunk

// What a lane needs to know of a group's activations: those of its tokens in every tile of 8.
struct Inputs {
    float start[NT][LANE_TOKENS];  // what the sum begins with
    float scale[NT][LANE_TOKENS];  // of the activations

    __device__ __forceinline__ void load(u32 address, u32 num_tokens) {
#pragma unroll
        for (int n = 0; n < NT; ++n) {
#pragma unroll
            for (int j = 0; j < LANE_TOKENS; ++j) {
                const u32 token = ONE ? 0 : min(8 * n + 2 * (threadIdx.x % 4) + j, num_tokens - 1);
                u32 a, b;
                load2(a, b, address + 8 * token);
                start[n][j] = __uint_as_float(a);
                scale[n][j] = __uint_as_float(b);
            }
        }
    }
};

// The lane's eight rows of a block, for each of its tokens.
__device__ __forceinline__ void load_rows(uint4 (&x)[NT], u32 address, u32 num_tokens) {
    const u32 lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < NT; ++n) {
        const u32 token = ONE ? 0 : min(8 * n + lane / 4, num_tokens - 1);
        u32 w[4];
        load4(w, address + 64 * token + 16 * (lane % 4));
        x[n] = {w[0], w[1], w[2], w[3]};
    }
}

// 32 rows by 32 columns (half a block) of the group's sums: columns 32 * half + 16 * i + lane / 4 (+ 8).
template <int bits, int half, bool first>
__device__ __forceinline__ void half_block(
    const u32* words, const uint4 (&x)[NT], const Inputs& inputs, float (&sums)[4][NT][4]
) {
    u32 v[16];
    Unpack<bits>::run(words, v);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int n = 0; n < NT; ++n) {
            float (&d)[4] = sums[2 * half + i][n];
            if constexpr (first) {
                const float c0 = bits == 2 ? inputs.start[n][0] : 0.f;
                const float c1 = bits == 2 ? inputs.start[n][LANE_TOKENS - 1] : 0.f;
                multiply(d, v[8 * i], v[8 * i + 4], v[8 * i + 1], v[8 * i + 5], x[n].x, x[n].y, c0, c1, c0, c1);
            } else {
                multiply(d, v[8 * i], v[8 * i + 4], v[8 * i + 1], v[8 * i + 5], x[n].x, x[n].y, d[0], d[1], d[2], d[3]);
            }
            multiply(d, v[8 * i + 2], v[8 * i + 6], v[8 * i + 3], v[8 * i + 7], x[n].z, x[n].w, d[0], d[1], d[2], d[3]);
        }
    }
}

// One block of 32 rows by 64 columns at shared address `at` (this warp's).
template <int bits, bool first>
__device__ __forceinline__ void one_block(
    u32 at, const uint4 (&x)[NT], const Inputs& inputs, float (&sums)[4][NT][4]
) {
    u32 w[2 * bits];
    load_words<bits>(w, at);
    half_block<bits, 0, first>(w, x, inputs, sums);
    half_block<bits, 1, first>(w + bits, x, inputs, sums);
}

// totals += sums * scale
template <int i>
__device__ __forceinline__ void add_scaled_tile(
    u32 codes, u32 maximum, const Inputs& inputs, const float (&sums)[4][NT][4], float (&totals)[4][NT][2][LANE_TOKENS]
) {
    const u32 scales = scale_pair<i>(codes, maximum);
    const float low = low_half(scales), high = high_half(scales);
#pragma unroll
    for (int n = 0; n < NT; ++n) {
#pragma unroll
        for (int j = 0; j < LANE_TOKENS; ++j) {
            const float factor = inputs.scale[n][j];
            totals[i][n][0][j] += sums[i][n][j] * (low * factor);
            totals[i][n][1][j] += sums[i][n][2 + j] * (high * factor);
        }
    }
}

__device__ __forceinline__ void add_scaled(
    u32 codes, u32 maximum, const Inputs& inputs, const float (&sums)[4][NT][4], float (&totals)[4][NT][2][LANE_TOKENS]
) {
    add_scaled_tile<0>(codes, maximum, inputs, sums, totals);
    add_scaled_tile<1>(codes, maximum, inputs, sums, totals);
    add_scaled_tile<2>(codes, maximum, inputs, sums, totals);
    add_scaled_tile<3>(codes, maximum, inputs, sums, totals);
}

struct Warp {
    const u32* maxima;
    u32 num_tokens;
    float totals[4][NT][2][LANE_TOKENS];

    // All chunks of a run: `num_groups` groups of `num_blocks` blocks each.
    template <int bits, int num_blocks, int num_groups>
    __device__ __forceinline__ void take(const Run& run, Ring& ring) {
        const u32* maximum = maxima + (run.group & 0xffff);
        for (u32 left = run_count(run); left > 0; --left, maximum += num_groups) {
            u32 scale[num_groups];
#pragma unroll
            for (int g = 0; g < num_groups; ++g) scale[g] = maximum[g];
            ring.await();
            u32 at = ring.slot, x_at = ring.slot + WEIGHT_BYTES;
#pragma unroll
            for (int g = 0; g < num_groups; ++g) {
                Inputs inputs;
                inputs.load(x_at, num_tokens);
                x_at += input_header(num_tokens);
                const u32 codes = load1(at + threadIdx.x % 32 / 4 * 4);
                float sums[4][NT][4];
#pragma unroll
                for (int i = 0; i < num_blocks; ++i) {
                    uint4 x[NT];
                    load_rows(x, x_at, num_tokens);
                    x_at += 64 * num_tokens;
                    if (i == 0) one_block<bits, true>(at + HEADER_BYTES, x, inputs, sums);
                    else one_block<bits, false>(at + HEADER_BYTES + 256 * bits * i, x, inputs, sums);
                }
                at += HEADER_BYTES + 256 * bits * num_blocks;
                if (g == num_groups - 1) ring.release();
                add_scaled(codes, scale[g], inputs, sums, totals);
            }
        }
    }

    __device__ __forceinline__ void take(const Run& run, Ring& ring) {
        switch (run.shape & 0x7ff) {  // what _runs in schedule.py makes
#define FORM(bits, blocks, groups) case bits | blocks << 4 | groups << 8: take<bits, blocks, groups>(run, ring); break;
#if NT == 1
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

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < 4 * NT * 2 * LANE_TOKENS; ++i) {
            totals[i / (2 * NT * LANE_TOKENS)][i / (2 * LANE_TOKENS) % NT][i / LANE_TOKENS % 2][i % LANE_TOKENS] = 0.f;
        }
    }

    // totals to partial [num_tokens, SUM_STRIDE]
    __device__ __forceinline__ void store(float* partial) const {
        const u32 lane = threadIdx.x % 32;
#pragma unroll
        for (int n = 0; n < NT; ++n) {
#pragma unroll
            for (int j = 0; j < LANE_TOKENS; ++j) {
                const u32 token = 8 * n + LANE_TOKENS * (lane % 4) + j;
                if (token >= num_tokens) continue;
                float* row = partial + token * SUM_STRIDE + lane / 4;
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    row[16 * i] = totals[i][n][0][j];
                    row[16 * i + 8] = totals[i][n][1][j];
                }
            }
        }
    }
};

// ---- sums over warps and over blocks

// Of a part of a tile: where it is in the workspace [slots, MAX_TOKENS, 64].
__device__ __forceinline__ u32 part_place(u32 slot, u32 token, u32 column) {
    return (slot * MAX_TOKENS + token) * TILE_COLUMNS + column;
}

// What thread blocks leave to each other.
struct Workspace {
    float* sums;     // [slots, MAX_TOKENS, 64]
    u32* counters;   // one a slot, zero before and after
    u32* exchanges;  // [slots, MAX_TOKENS, 64] of tiles in two parts, zero before and after; null: there are too many

    __device__ __forceinline__ bool exchanges_parts(const Tile& tile) const {
        return tile_parts(tile) == 2 && exchanges != nullptr;
    }
    __device__ __forceinline__ bool counts_parts(const Tile& tile) const {
        return tile_parts(tile) > 1 && !exchanges_parts(tile);
    }
};

// A tile's two parts, without a fence or a counter: who comes first leaves its sum, in bits that are not zero, and who
// comes second finds it. Whoever that is, a + b is b + a. Returns whether `sum` is of both now.
__device__ __forceinline__ bool exchange(u32* place, float& sum) {
    const u32 own = isnan(sum) ? 1u : ~__float_as_uint(sum);  // 1 is a NaN too, and 0 would be one
    const u32 other = atomicExch(place, own);
    if (other == 0) return false;
    *place = 0;  // for the next launch
    sum += __uint_as_float(~other);
    return true;
}

// Adds up the warps' sums of every tile: to the output, or for other thread blocks that have a part of it.
// Returns whether there are tiles whose parts are still to be added up.
__device__ __forceinline__ bool add_warps(
    const Tile* tiles, u32 num_tiles, const float* sums, const Workspace& space, const Output& output, u32 num_tokens
) {
    bool is_shared = false;
    const u32 outputs = num_tokens * TILE_COLUMNS;
    for (u32 i = threadIdx.x; i < num_tiles * outputs; i += 32 * WARPS) {
        const Tile tile = tiles[i / outputs];
        const u32 token = i % outputs / TILE_COLUMNS, column = i % TILE_COLUMNS;
        const u32 first = tile.sums >> 16 & 0xff, count = tile.sums >> 24;
        float sum = 0.f;
        for (u32 k = first; k < first + count; ++k) sum += sums[(k * num_tokens + token) * SUM_STRIDE + column];
        if (space.counts_parts(tile)) {
            space.sums[part_place(tile.slot, token, column)] = sum;
        } else if (column < tile_columns(tile)) {
            u32* place = space.exchanges + part_place(tile_first_slot(tile), token, column);
            if (space.exchanges_parts(tile) && !exchange(place, sum)) continue;
            output.store(token, tile.column + column, sum);
        }
    }
    for (u32 i = 0; i < num_tiles; ++i) is_shared |= space.counts_parts(tiles[i]);
    return is_shared;
}

// The other tiles that several thread blocks have a part of: whoever is last adds the parts up, always in the same order.
__device__ __noinline__ void add_blocks(
    const Tile* tiles, u32 num_tiles, const Workspace& space, const Output& output, u32 num_tokens
) {
    __shared__ bool is_last[MAX_TILES];
    __threadfence();
    __syncthreads();
    for (u32 i = threadIdx.x; i < num_tiles; i += 32 * WARPS) {
        u32* counter = space.counters + tile_first_slot(tiles[i]);
        is_last[i] = space.counts_parts(tiles[i]) && atomicAdd(counter, 1) == tile_parts(tiles[i]) - 1;
        if (is_last[i]) *counter = 0;  // for the next launch
    }
    __syncthreads();
    __threadfence();
    const u32 outputs = num_tokens * TILE_COLUMNS;
    for (u32 i = threadIdx.x; i < num_tiles * outputs; i += 32 * WARPS) {
        if (!is_last[i / outputs]) continue;
        const Tile tile = tiles[i / outputs];
        const u32 token = i % outputs / TILE_COLUMNS, column = i % TILE_COLUMNS;
        if (column >= tile_columns(tile)) continue;
        const float* part = space.sums + part_place(tile_first_slot(tile), token, column);
        float sum = 0.f;
        for (u32 p = 0; p < tile_parts(tile); ++p) sum += __ldcg(part + p * MAX_TOKENS * TILE_COLUMNS);
        output.store(token, tile.column + column, sum);
    }
}

// ---- a thread block's part

struct Product {
    const Run* runs;      // [blocks, WARPS, num_runs], the last of each warp empty
    const Tile* tiles;    // [blocks, num_tiles]
    const u32* maxima;    // [groups] half2 of each group's over 256
    u32 num_runs, num_tiles;

    __device__ __forceinline__ const Run* own_runs() const {
        return runs + (blockIdx.x * WARPS + threadIdx.x / 32) * num_runs;
    }
    // To `own` [MAX_TILES] in shared memory, where they are once all threads have been here.
    __device__ __forceinline__ void copy_tiles(Tile* own) const {
        for (u32 i = threadIdx.x; i < num_tiles; i += 32 * WARPS) own[i] = tiles[blockIdx.x * num_tiles + i];
    }
};

// The warp's part of it, to sums [sums of warps, num_tokens, SUM_STRIDE].
__device__ __forceinline__ void multiply(const Product& product, Ring& ring, float* sums, u32 num_tokens) {
    Warp warp;
    warp.maxima = product.maxima;
    warp.num_tokens = num_tokens;
    warp.clear();
    const Run* runs = product.own_runs();
    for (Run run = *runs; run_count(run) != 0; run = *++runs) {
        warp.take(run, ring);
        if (!run_ends_tile(run)) continue;
        warp.store(sums + (run.block >> 16) * num_tokens * SUM_STRIDE);
        warp.clear();
    }
}

// When all warps have multiplied. tiles: the thread block's.
__device__ __forceinline__ void finish(
    const Product& product, const Tile* tiles, const float* sums, const Workspace& space, const Output& output,
    u32 num_tokens
) {
    if (add_warps(tiles, product.num_tiles, sums, space, output, num_tokens)) {
        add_blocks(tiles, product.num_tiles, space, output, num_tokens);
    }
}
