// Products of a few rows that follow one another, in one launch: what stands between them costs a meeting of all thread
// blocks or two, and while they meet the next product's weights are on their way.
//
// A product leaves its tiles' parts (product.cuh) in memory as they are; whoever reads them after the meeting adds them
// up, in their order. One row is sorted (activations.cuh) by every thread block into its own shared memory. Several rows,
// and what a gate lets through, are sorted in shares and meet once more. A norm's factor is left to the sums.
// One thread block a multiprocessor, all at work at once: a cooperative launch.
//
// Compile-time: as product.cuh, and RESIDUAL, the kind of the residual stream (activations.cuh), 0 or 2.

#include "activations.cuh"
#include "overlap.cuh"

constexpr bool RESIDENT = ONE;

#include "product.cuh"

typedef Number<RESIDUAL>::Type Residual;

constexpr u32 THREADS = 32 * WARPS;
constexpr u32 MAX_LINKS = 8;

enum Start : u32 { SORT, NORM, GATE };  // as START in chain.py

struct __align__(16) Link {  // as LINK in chain.py
    Product product;
    const int* order;           // the feature at each sorted row
    const InputGroup* groups;
    const char* whole;          // of one row, sorted whole: its input with features (16 bits) in place of values, the
                                // groups, the columns of the link before
    const u16* weight;          // of the norm, [width] fp16
    const u16* bias;            // of the product, fp16; null: none
    const u32* columns;         // [outputs / 32] where the product's parts lie: 2 * first slot + half << 8 | how many
    u32 whole_bytes;
    u32 num_maxima;             // a multiple of four
    u32 num_groups;
    u32 counted_groups;         // the first so many have every feature once
    u32 input_bytes;            // of one row's sorted input
    u32 start;
    u32 activation;             // of the gate
    u32 width;                  // features of the input
    float eps, offset;          // of the norm
    u32 outputs;
};

// ---- tables to shared memory

// By some threads of `step`, 16 bytes each; there after settle().
__device__ __forceinline__ void stash(void* target, const void* source, u32 bytes, u32 thread, u32 step) {
    const u32 address = shared_address(target);
    for (u32 at = 16 * thread; at < bytes; at += 16 * step) copy16(address + at, static_cast<const char*>(source) + at);
}

// What this thread has stashed is there.
__device__ __forceinline__ void settle() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// ---- meetings

// The top bit of `word` turns over when all thread blocks have arrived, and the others are zero again.
struct Gathering {
    u32* word;
    u32 before;  // the top bit until then; thread 0's

    __device__ __forceinline__ u32 read() const {
        u32 value;
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
        return value & 0x80000000u;
    }

    // Before this block's first arrival nobody can turn the bit over.
    __device__ __forceinline__ explicit Gathering(u32* word) : word(word), before(threadIdx.x == 0 ? read() : 0) {}

    // What the thread block wrote before can be read by all after their wait: the barrier orders its threads' stores
    // before thread 0's release, which hands on what it has seen.
    __device__ __forceinline__ void arrive() const {
        __syncthreads();
        if (threadIdx.x == 0) {
            const u32 count = blockIdx.x == 0 ? 0x80000000u - (gridDim.x - 1) : 1u;
            asm volatile("red.release.gpu.global.add.u32 [%0], %1;" :: "l"(word), "r"(count) : "memory");
        }
    }

    __device__ __forceinline__ void wait() {
        if (threadIdx.x == 0) {
            while (read() == before) {}
            before ^= 0x80000000u;
        }
        settle();
        __syncthreads();
    }
};

// The copy engine is another proxy: what this thread may read by now, copies that it starts after this may read too. The
// first lane of a warp starts them all. Nothing is due the other way: what copies have read, they have announced to the
// warp before its thread block arrives, and only after that does anybody write there again.
__device__ __forceinline__ void let_copies_see() {
#if __CUDA_ARCH__ >= 900
    if (threadIdx.x % 32 == 0) asm volatile("fence.proxy.async.global;" ::: "memory");
#endif
}

// ---- shared memory

struct Room {  // what the rings leave
    Run* runs;        // [2, WARPS, most_runs]: of this link and of the next
    Tile* tiles;
    u32* maxima;
    float* sums;
    char* input;      // the sorted row; behind it its groups, the columns of the link before, and the row as it came
    u32 most_runs;

    __device__ __forceinline__ Run* own_runs(u32 link) const {
        return runs + (link % 2 * WARPS + threadIdx.x / 32) * most_runs;
    }

    // The warp's runs of a link.
    __device__ __forceinline__ void stash_runs(const Product& product, u32 link) const {
        stash(own_runs(link), product.own_runs(), sizeof(Run) * product.num_runs, threadIdx.x % 32, 32);
    }

    __device__ __forceinline__ const InputGroup* groups(const Link& link) const {
        return reinterpret_cast<InputGroup*>(input + link.input_bytes);
    }
    __device__ __forceinline__ const u32* columns(const Link& link) const {
        return reinterpret_cast<u32*>(input + link.input_bytes + (8 * link.num_groups + 15) / 16 * 16);
    }
    __device__ __forceinline__ float* row(const Link& link) const {
        return reinterpret_cast<float*>(input + link.whole_bytes);
    }
};

// ---- what a link reads

struct Given {
    const u16* first;    // [tokens, stride] of the first link; null: parts of the link before
    const float* parts;
    const u32* columns;
    const u16* bias;
    u32 stride;

    __device__ __forceinline__ u32 column(u32 feature) const { return columns == nullptr ? 0 : columns[feature / 32]; }

    // The first part of a feature.
    __device__ __forceinline__ const float* part(u32 column, u32 token, u32 feature) const {
        return parts + part_place(column >> 9, token, (column >> 3 & 32) + feature % 32);
    }

    // out[i]: of features from[i] with their columns
    __device__ __forceinline__ void read(float (&out)[4], u32 token, const int4& from, const u32 (&column)[4]) const {
        const u32 feature[4] = {u32(from.x), u32(from.y), u32(from.z), u32(from.w)};
        if (first != nullptr) {
#pragma unroll
            for (int i = 0; i < 4; ++i) out[i] = low_half(first[static_cast<u64>(token) * stride + feature[i]]);
            return;
        }
        constexpr u32 STEP = MAX_TOKENS * TILE_COLUMNS;
        float second[4], bias_at[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float* at = part(column[i], token, feature[i]);
            out[i] = __ldcg(at);
            second[i] = (column[i] & 0xff) > 1 ? __ldcg(at + STEP) : 0.f;
            bias_at[i] = bias != nullptr ? low_half(bias[feature[i]]) : 0.f;
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            out[i] += second[i];
            const float* at = part(column[i], token, feature[i]);
            for (u32 p = 2; p < (column[i] & 0xff); ++p) out[i] += __ldcg(at + p * STEP);
            out[i] += bias_at[i];
        }
    }
};

__device__ __forceinline__ float4 plus(const float4& a, const float4& b) {
    return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}

__device__ __forceinline__ float4 four_halves(const u16* x) {
    const uint2 w = __ldcg(reinterpret_cast<const uint2*>(x));
    return {low_half(w.x), high_half(w.x), low_half(w.y), high_half(w.y)};
}

__device__ __forceinline__ float4 read_four(const Residual* x) {
    if constexpr (RESIDUAL == 2) return __ldcg(reinterpret_cast<const float4*>(x));
    else return four_halves(reinterpret_cast<const u16*>(x));
}

__device__ __forceinline__ void write_four(Residual* x, const float4& v) {
    if constexpr (RESIDUAL == 2) {
        *reinterpret_cast<float4*>(x) = v;
    } else {
        *reinterpret_cast<uint2*>(x) = {to_half(v.x) | u32(to_half(v.y)) << 16, to_half(v.z) | u32(to_half(v.w)) << 16};
    }
}

__device__ __forceinline__ Residual to_residual(float x) {
    if constexpr (RESIDUAL == 2) return x;
    else return to_half(x);
}

// The residual stream: x before what the link before added, and new_x, where a share of it goes with that added.
struct Stream {
    const Residual* x;
    Residual* new_x;  // null: nothing was added
};

// ---- one row, sorted whole by every thread block

struct WholeRow {
    static constexpr u32 AT_ONCE = 6;  // times four features a thread

    // The row as it came, times the norm's weight, in its own order; returns the thread's sum of squares.
    static __device__ __forceinline__ float gather(
        const Link& link, const Given& given, const Stream& stream, const Room& room
    ) {
        const u32 width = link.width;
        const bool is_normed = link.start == NORM;
        float* row = room.row(link);
        const u32* columns = room.columns(link);
        float squares = 0.f;
        for (u32 start = 4 * threadIdx.x; start < width; start += 4 * THREADS * AT_ONCE) {
            float4 value[AT_ONCE], second[AT_ONCE], x[AT_ONCE], weight[AT_ONCE];
#pragma unroll
            for (u32 i = 0; i < AT_ONCE; ++i) {
                const u32 feature = start + 4 * THREADS * i;
                value[i] = second[i] = x[i] = {};
                weight[i] = {1.f, 1.f, 1.f, 1.f};
                if (feature >= width) continue;
                if (is_normed) {
                    x[i] = read_four(stream.x + feature);
                    weight[i] = four_halves(link.weight + feature);
                }
                if (given.parts != nullptr) {
                    const u32 column = columns[feature / 32];
                    const float* at = given.part(column, 0, feature);
                    value[i] = __ldcg(reinterpret_cast<const float4*>(at));
                    if ((column & 0xff) > 1) second[i] = __ldcg(reinterpret_cast<const float4*>(at + TILE_COLUMNS));
                } else if (given.first != nullptr) {
                    value[i] = four_halves(given.first + feature);
                }
            }
#pragma unroll
            for (u32 i = 0; i < AT_ONCE; ++i) {
                const u32 feature = start + 4 * THREADS * i;
                if (feature >= width) continue;
                float4 v = plus(value[i], second[i]);
                if (given.parts != nullptr) {
                    const u32 column = columns[feature / 32];
                    const float* at = given.part(column, 0, feature);
                    for (u32 p = 2; p < (column & 0xff); ++p) {
                        v = plus(v, __ldcg(reinterpret_cast<const float4*>(at + p * TILE_COLUMNS)));
                    }
                    if (given.bias != nullptr) v = plus(v, four_halves(given.bias + feature));
                }
                if (is_normed) {
                    v = plus(v, x[i]);
                    squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
                    if (stream.new_x != nullptr && feature / 32 % gridDim.x == blockIdx.x) write_four(stream.new_x + feature, v);
                    const float offset = link.offset;
                    v = {v.x * (weight[i].x + offset), v.y * (weight[i].y + offset),
                         v.z * (weight[i].z + offset), v.w * (weight[i].w + offset)};
                }
                *reinterpret_cast<float4*>(row + feature) = v;
            }
        }
        return squares;
    }

    // Sorts the row in place of the features' numbers.
    static __device__ __forceinline__ void sort(const Link& link, const Room& room) {
        const float* row = room.row(link);
        const InputGroup* groups = room.groups(link);
        for (u32 group = threadIdx.x / GROUP_LANES; group < link.num_groups; group += THREADS / GROUP_LANES) {
            const InputGroup shape = groups[group];
            float values[4] = {};
            if (4 * group_lane() < (shape.shape & 0xffff)) {
                const char* begin = room.input + group * input_header(1) + shape.row * 2;
                const uint2 from = *reinterpret_cast<const uint2*>(begin + input_header(1) + 8 * group_lane());
                values[0] = row[from.x & 0xffff];
                values[1] = row[from.x >> 16];
                values[2] = row[from.y & 0xffff];
                values[3] = row[from.y >> 16];
            }
            store_group(values, group, 0, shape, room.input, 1);
        }
    }
};

// The factor of an RMSNorm's sums (arXiv 1910.07467).
__device__ __forceinline__ float norm_factor(float squares, const Link& link) {
    return rsqrtf(squares / static_cast<float>(link.width) + link.eps);
}

__device__ __forceinline__ float over_warp(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffff, x, step);
    return x;
}

__device__ __forceinline__ void sort_whole(
    const Link& link, const Given& given, const Stream& stream, const Room& room, float* factors
) {
    __shared__ float squares[WARPS];
    const float sum = over_warp(WholeRow::gather(link, given, stream, room));
    if (threadIdx.x % 32 == 0) squares[threadIdx.x / 32] = sum;
    __syncthreads();
    if (link.start == NORM && threadIdx.x == 0) {
        float all = 0.f;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) all += squares[w];
        factors[0] = norm_factor(all, link);
    }
    WholeRow::sort(link, room);
    __syncthreads();
}

// ---- rows sorted in shares, one a thread block

struct Task {  // a group and a token, and what is known of it before the blocks meet
    u32 index, group, token;
    Place place;
    u32 columns[4];
    u32 up_columns[4];  // of what a gate's values let through
};

struct Share {
    u32 num_groups, stop, first;  // tasks, token after token

    __device__ __forceinline__ Share(const Link& link, u32 num_tokens) {
        num_groups = link.num_groups;
        const u32 all = num_groups * num_tokens, share = (all + gridDim.x - 1) / gridDim.x;
        first = min(blockIdx.x * share, all);
        stop = min(first + share, all);
    }

    __device__ __forceinline__ Task task(const Link& link, const Given& given, u32 index) const {
        Task task = {index};
        if (index >= stop) return task;
        task.token = index / num_groups;
        task.group = index - task.token * num_groups;
        task.place = find_place(link.order, link.groups, task.group);
        if (!task.place.has_rows) return task;
        const int4 from = task.place.from;
        const u32 feature[4] = {u32(from.x), u32(from.y), u32(from.z), u32(from.w)};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            task.columns[i] = given.column(feature[i]);
            task.up_columns[i] = link.start == GATE ? given.column(link.width + feature[i]) : 0;
        }
        return task;
    }

    __device__ __forceinline__ Task first_task(const Link& link, const Given& given) const {
        return task(link, given, first + threadIdx.x / GROUP_LANES);
    }
};

__device__ __forceinline__ void sort_task(
    const Link& link, const Given& given, const Stream& stream, const Task& task, char* sorted, float* squares,
    u32 num_tokens
) {
    const u32 width = link.width, token = task.token;
    const int4 from = task.place.from;
    const int feature[4] = {from.x, from.y, from.z, from.w};
    float values[4] = {};
    if (task.place.has_rows) {
        if (given.first != nullptr || given.parts != nullptr) given.read(values, token, from, task.columns);
        if (link.start == GATE) {
            const int w = static_cast<int>(width);
            float up[4];
            given.read(up, token, {from.x + w, from.y + w, from.z + w, from.w + w}, task.up_columns);
#pragma unroll
            for (int i = 0; i < 4; ++i) values[i] = activate(values[i], link.activation) * up[i];
        } else if (link.start == NORM) {
            const Residual* row = stream.x + static_cast<u64>(token) * width;
#pragma unroll
            for (int i = 0; i < 4; ++i) values[i] += Number<RESIDUAL>::read(__ldcg(row + feature[i]));
        }
    }
    if (link.start == NORM) {
        const bool is_counted = task.group < link.counted_groups;
        const float sum = sum_over_group(
            values[0] * values[0] + values[1] * values[1] + values[2] * values[2] + values[3] * values[3]
        );
        if (is_counted && group_lane() == 0) squares[token * link.num_groups + task.group] = sum;
        if (task.place.has_rows) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if (is_counted && stream.new_x != nullptr) {
                    stream.new_x[static_cast<u64>(token) * width + feature[i]] = to_residual(values[i]);
                }
                values[i] *= low_half(link.weight[feature[i]]) + link.offset;
            }
        }
    }
    store_group(values, task.group, token, task.place.shape, sorted, num_tokens);
}

// squares [num_tokens, groups of the link]
__device__ __forceinline__ void sort_share(
    const Link& link, const Given& given, const Stream& stream, Task task, char* sorted, float* squares, u32 num_tokens
) {
    const Share share(link, num_tokens);
    while (task.index < share.stop) {
        const Task next = share.task(link, given, task.index + THREADS / GROUP_LANES);
        sort_task(link, given, stream, task, sorted, squares, num_tokens);
        task = next;
    }
}

// A warp a token; known to the thread block after its next barrier.
__device__ __forceinline__ void find_factors(const Link& link, const float* squares, u32 num_tokens, float* factors) {
    for (u32 token = threadIdx.x / 32; token < num_tokens; token += WARPS) {
        float sum = 0.f;
        for (u32 i = threadIdx.x % 32; i < link.counted_groups; i += 32) sum += __ldcg(squares + token * link.num_groups + i);
        sum = over_warp(sum);
        if (threadIdx.x % 32 == 0) factors[token] = norm_factor(sum, link);
    }
}

// ---- the chain

// Of one row only what a gate lets through: to compute it in every thread block would take longer than to meet again.
__device__ __forceinline__ bool is_shared_out(const Link& link) { return !ONE || link.start == GATE; }

// first [num_tokens, inputs of the first link]; x the residual stream; streams [links that add, num_tokens, width], what it
// becomes; out [num_tokens, outputs of the last link], of the stream's type if it adds, else fp16; sorted, squares: room for
// a link's input; parts of even and of odd links, each written while others may still read the other's.
extern "C" __global__ void __launch_bounds__(THREADS, 1) exl2_chain(
    const Link* all_links, u32 num_links, const u16* first, const Residual* x, Residual* streams, void* out, u32 last_adds,
    char* sorted, float* squares, float* even_parts, float* odd_parts, u32* counters, u32* meeting, u32 num_tokens,
    u32 most_runs, u32 most_tiles, u32 most_maxima, u32 most_sums
) {
    extern __shared__ __align__(128) char memory[];
    __shared__ __align__(8) u64 barriers[WARPS * SLOTS];
    __shared__ __align__(16) Link links[MAX_LINKS];
    __shared__ float factors[MAX_TOKENS];
    if (ONE) num_tokens = 1;
    Room room;
    room.most_runs = most_runs;
    room.runs = reinterpret_cast<Run*>(memory + WARPS * RING_BYTES);
    room.tiles = reinterpret_cast<Tile*>(room.runs + 2 * WARPS * most_runs);
    room.maxima = reinterpret_cast<u32*>(room.tiles + most_tiles);
    room.sums = reinterpret_cast<float*>(room.maxima + most_maxima);
    room.input = reinterpret_cast<char*>(room.sums + most_sums * MAX_TOKENS * SUM_STRIDE);

    Ring ring;
    ring.place(memory, barriers);
    let_next_grid_start();
    stash(links, all_links, sizeof(Link) * num_links, threadIdx.x, THREADS);
    settle();
    __syncthreads();
    const auto ask_for_weights = [&](u32 i) {
        ring.begin(links[i].product.stream, nullptr, room.own_runs(i), num_tokens);
        ring.fill(true, false);
    };
    room.stash_runs(links[0].product, 0);
    settle();
    __syncwarp();
    ask_for_weights(0);

    const auto given_to = [&](u32 i) {
        if (i == 0) return Given{links[0].start == NORM ? nullptr : first, nullptr, nullptr, nullptr,
                                 links[0].start == GATE ? 2 * links[0].width : links[0].width};
        const Link& before = links[i - 1];
        return Given{nullptr, i % 2 ? even_parts : odd_parts, before.columns, before.bias, before.outputs};
    };
    // What a link needs and no other thread block writes, but for activations.
    const auto prepare = [&](u32 i) {
        const Link& link = links[i];
        stash(room.tiles, link.product.own_tiles(), sizeof(Tile) * link.product.num_tiles, threadIdx.x, THREADS);
        stash(room.maxima, link.product.maxima, sizeof(u32) * link.num_maxima, threadIdx.x, THREADS);
        if (i + 1 < num_links) room.stash_runs(links[i + 1].product, i + 1);
        const Given given = given_to(i);
        if (is_shared_out(link)) return Share(link, num_tokens).first_task(link, given);
        stash(room.input, link.whole, link.whole_bytes, threadIdx.x, THREADS);
        return Task{};
    };
    Task task = prepare(0);
    settle();
    __syncthreads();
    wait_for_previous_grid();
    Gathering gathering(meeting);
#pragma unroll 1
    for (u32 i = 0;; ++i) {
        const Link& link = links[i];
        const Given given = given_to(i);
        const Stream stream = {x, i == 0 ? nullptr : streams};
        if (is_shared_out(link)) {
            sort_share(link, given, stream, task, sorted, squares, num_tokens);
            gathering.arrive();
            gathering.wait();
            if (RESIDENT) {
                for (u32 k = threadIdx.x; k < link.input_bytes / 16; k += THREADS) {
                    reinterpret_cast<uint4*>(room.input)[k] = __ldcg(reinterpret_cast<const uint4*>(sorted) + k);
                }
                __syncthreads();
            } else {
                let_copies_see();
                ring.begin(link.product.stream, sorted, room.own_runs(i), num_tokens);
                ring.fill(false, true);
                if (link.start == NORM) find_factors(link, squares, num_tokens, factors);
            }
        } else {
            sort_whole(link, given, stream, room, factors);
        }
        if (link.start == NORM && i > 0) {
            x = streams;
            streams += static_cast<u64>(num_tokens) * link.width;
        }
        multiply(ring, room.own_runs(i), room.maxima, shared_address(room.input), room.sums, num_tokens);
        if (i + 1 < num_links) ask_for_weights(i + 1);
        const float* norm_factors = link.start == NORM ? factors : nullptr;
        float* parts = i % 2 ? odd_parts : even_parts;
        __syncthreads();
        if (i + 1 == num_links) {
            const Output output = {out, last_adds ? x : nullptr, link.bias, link.outputs, last_adds && RESIDUAL == 2};
            finish(room.tiles, link.product.num_tiles, room.sums, norm_factors, {parts, counters}, output, num_tokens);
            break;
        }
        add_warps(room.tiles, link.product.num_tiles, room.sums, num_tokens,
                  [&](const Tile& tile, u32 token, u32 column, float sum) {
            parts[part_place(tile.slot, token, column)] = norm_factors == nullptr ? sum : sum * norm_factors[token];
        });
        gathering.arrive();
        task = prepare(i + 1);
        gathering.wait();
    }
}
