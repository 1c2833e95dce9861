// One product of a few rows (product.cuh): a launch with one thread block a share of the schedule.

#include "overlap.cuh"

constexpr bool RESIDENT = false;

#include "product.cuh"

// x from activations.cu; out and residual [num_tokens, out_stride], residual null: none.
extern "C" __global__ void __launch_bounds__(32 * WARPS, 1) exl2_decode(
    const char* stream, const Run* runs, const Tile* tiles, const u32* maxima, const char* x, void* out,
    const void* residual, float* meeting_sums, u32* meeting_counters, u32 num_runs, u32 num_tiles, u32 num_tokens,
    u32 out_stride, u32 out_is_float
) {
    extern __shared__ __align__(128) char memory[];
    __shared__ __align__(8) u64 barriers[WARPS * SLOTS];
    float* sums = reinterpret_cast<float*>(memory + WARPS * RING_BYTES);
    if (ONE) num_tokens = 1;
    const Product product = {stream, runs, tiles, maxima, num_runs, num_tiles};
    Ring ring;
    ring.place(memory, barriers);

    let_next_grid_start();
    ring.begin(stream, nullptr, product.own_runs(), num_tokens);
    ring.fill(true, false);
    wait_for_previous_grid();
    ring.begin(stream, x, product.own_runs(), num_tokens);
    ring.fill(false, true);
    multiply(ring, product.own_runs(), maxima, 0, sums, num_tokens);
    __syncthreads();
    const Output output = {out, residual, nullptr, out_stride, out_is_float != 0};
    finish(product.own_tiles(), num_tiles, sums, nullptr, {meeting_sums, meeting_counters}, output, num_tokens);
}
