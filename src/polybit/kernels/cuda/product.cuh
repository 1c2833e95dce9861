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

#include "unpack.cuh"

constexpr int MAX_BLOCKS = NT == 1 ? 4 : 2;             // of 32 rows in a chunk
constexpr int LANE_TOKENS = ONE ? 1 : 2;               // rows of the result that a lane holds, in each tile of 8
constexpr int MAX_TOKENS = ONE ? 1 : 8 * NT;
constexpr int WEIGHT_BYTES = 2048 + 4 * HEADER_BYTES;  // of a chunk: at most four groups, 2048 bytes of blocks
constexpr int INPUT_BYTES = (64 * MAX_TOKENS + (ONE ? 16 : 8 * MAX_TOKENS)) * MAX_BLOCKS;
constexpr int SLOT_BYTES = WEIGHT_BYTES + INPUT_BYTES;
constexpr int RING_BYTES = SLOTS * SLOT_BYTES;         // a warp's
constexpr int SUM_STRIDE = TILE_COLUMNS + 4;           // floats a token; the 4 keep lanes on different banks

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

// Bytes that the activations of one group begin with: {start, scale} of each token, padded to 16 (activations.cu).
__device__ __forceinline__ u32 input_header(u32 num_tokens) { return ONE ? 16 : (8 * num_tokens + 15) / 16 * 16; }

__device__ __forceinline__ u32 shared_address(const void* p) {
    return static_cast<u32>(__cvta_generic_to_shared(p));
}

// ---- copies to shared memory: by the copy engine where there is one, else by the lanes

#if __CUDA_ARCH__ >= 900
constexpr bool BULK = true;
#else
constexpr bool BULK = false;
#endif

__device__ __forceinline__ void copy16(u32 target, const char* source) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" :: "r"(target), "l"(source));
#else
    const uint4 value = *reinterpret_cast<const uint4*>(source);
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};"
                 :: "r"(target), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w));
#endif
}

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

// ---- loads from shared memory

__device__ __forceinline__ void load4(u32 (&w)[4], u32 address) {
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3]) : "r"(address));
}

__device__ __forceinline__ void load2(u32& a, u32& b, u32 address) {
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(a), "=r"(b) : "r"(address));
}

__device__ __forceinline__ u32 load1(u32 address) {
    u32 w;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(w) : "r"(address));
    return w;
}

// ---- one warp's bytes, in order, chunk by chunk through a ring in shared memory

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

    // Ask for the first chunks of `runs`: their weights, which no launch writes, or their activations.
    __device__ __forceinline__ void fill(const Run* runs, bool want_weights, bool want_inputs) {
        next = runs;
        chunks_left = 0;
#pragma unroll 1
        for (int i = 0; i < SLOTS; ++i, move_on()) request(want_weights, want_inputs);
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

    // Fill the slot with the next chunk: its weights, its activations (the weights asked for before), or both.
    __device__ __forceinline__ void request(bool want_weights, bool want_inputs) {
        if (chunks_left == 0) next_run();
        if (chunks_left != 0) {
            if (want_weights) {
                expect_copies(barrier, bytes + input_bytes);
                copy<WEIGHT_BYTES>(slot, source, bytes, barrier);
            }
            if (want_inputs) copy<INPUT_BYTES>(slot + WEIGHT_BYTES, input, input_bytes, barrier);
            source += bytes;
            input += input_bytes;
            --chunks_left;
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
        request(true, true);
        move_on();
    }
};

// d = a * b + c: 16 columns by 16 rows of weights, 16 rows by 8 tokens of activations
__device__ __forceinline__ void multiply(
    float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1, float c0, float c1, float c2, float c3
) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "f"(c0), "f"(c1), "f"(c2), "f"(c3));
#else
    asm("{ .reg .f32 t<4>;\n"
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {t0,t1,t2,t3}, {%4,%5}, {%8}, {%10,%11,%12,%13};\n"
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%6,%7}, {%9}, {t0,t1,t2,t3}; }"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "f"(c0), "f"(c1), "f"(c2), "f"(c3));
#endif
}

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
    const u32 lane = threadIdx.x % 32;
    u32 w[2 * bits];
    if constexpr (bits < 4) {
        load4(*reinterpret_cast<u32(*)[4]>(w), at + 16 * lane);
        if constexpr (bits == 3) load2(w[4], w[5], at + 512 + 8 * lane);
    } else {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            u32* words = w + half * bits;
            const u32 from = at + half * 128 * bits;
            load4(*reinterpret_cast<u32(*)[4]>(words), from + 16 * lane);
            if constexpr (bits == 5) words[4] = load1(from + 512 + 4 * lane);
            if constexpr (bits == 6) load2(words[4], words[5], from + 512 + 8 * lane);
            if constexpr (bits == 8) load4(*reinterpret_cast<u32(*)[4]>(words + 4), from + 512 + 16 * lane);
        }
    }
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

// Of a part of a tile: where it is in the workspace [slots, MAX_TOKENS, 64].
__device__ __forceinline__ u32 part_place(u32 slot, u32 token, u32 column) {
    return (slot * MAX_TOKENS + token) * TILE_COLUMNS + column;
}

// Adds up the warps' sums of every tile: to the output, or to the workspace where other thread blocks have a part.
// Returns whether there is such a tile.
__device__ __forceinline__ bool add_warps(
    const Tile* tiles, u32 num_tiles, const float* sums, float* workspace, const Output& output, u32 num_tokens
) {
    bool is_shared = false;
    const u32 outputs = num_tokens * TILE_COLUMNS;
    for (u32 i = threadIdx.x; i < num_tiles * outputs; i += 32 * WARPS) {
        const Tile tile = tiles[i / outputs];
        const u32 token = i % outputs / TILE_COLUMNS, column = i % TILE_COLUMNS;
        const u32 first = tile.sums >> 16 & 0xff, count = tile.sums >> 24;
        float sum = 0.f;
        for (u32 k = first; k < first + count; ++k) sum += sums[(k * num_tokens + token) * SUM_STRIDE + column];
        if (tile_parts(tile) > 1) workspace[part_place(tile.slot, token, column)] = sum;
        else if (column < tile_columns(tile)) output.store(token, tile.column + column, sum);
    }
    for (u32 i = 0; i < num_tiles; ++i) is_shared |= tile_parts(tiles[i]) > 1;
    return is_shared;
}

// Tiles that several thread blocks have a part of: whoever is last adds the parts up, always in the same order.
__device__ __noinline__ void add_blocks(
    const Tile* tiles, u32 num_tiles, float* workspace, u32* counters, const Output& output, u32 num_tokens
) {
    __shared__ bool is_last[MAX_TILES];
    __threadfence();
    __syncthreads();
    for (u32 i = threadIdx.x; i < num_tiles; i += 32 * WARPS) {
        const u32 parts = tile_parts(tiles[i]);
        u32* counter = counters + tile_first_slot(tiles[i]);
        is_last[i] = parts > 1 && atomicAdd(counter, 1) == parts - 1;
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
        const float* part = workspace + part_place(tile_first_slot(tile), token, column);
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

// When all warps have multiplied. tiles: the thread block's; workspace [slots, MAX_TOKENS, 64]; counters: one a slot,
// zero before and after.
__device__ __forceinline__ void finish(
    const Product& product, const Tile* tiles, const float* sums, float* workspace, u32* counters, const Output& output,
    u32 num_tokens
) {
    if (add_warps(tiles, product.num_tiles, sums, workspace, output, num_tokens)) {
        add_blocks(tiles, product.num_tiles, workspace, counters, output, num_tokens);
    }
}
