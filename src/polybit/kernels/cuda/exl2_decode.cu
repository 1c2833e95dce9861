// One product of a few rows (product.cuh): a launch with one thread block a share of the schedule.

#include "overlap.cuh"
#include "product.cuh"

// x from activations.cu; out and residual [num_tokens, out_stride], residual null: none.
extern "C" __global__ void __launch_bounds__(32 * WARPS, 1) exl2_decode(
    const char* stream, const Run* runs, const Tile* tiles, const u32* maxima, const char* x, void* out,
    const void* residual, float* partial_sums, u32* counters, u32* exchanges, u32 num_runs, u32 num_tiles, u32 num_tokens,
    u32 out_stride, u32 out_is_float
) {
    extern __shared__ __align__(128) char memory[];
    __shared__ __align__(8) u64 barriers[WARPS * SLOTS];
    __shared__ Tile own_tiles[MAX_TILES];
    float* sums = reinterpret_cast<float*>(memory + WARPS * RING_BYTES);
    if (ONE) num_tokens = 1;
    const Product product = {runs, tiles, maxima, num_runs, num_tiles};
    Ring ring = {stream, x, num_tokens};
    ring.place(memory, barriers);

    let_next_grid_start();
    Source inputs[SLOTS];
    ring.fill_weights(product.own_runs(), inputs);
    product.copy_tiles(own_tiles);
    wait_for_previous_grid();
    ring.fill_inputs(inputs);
    multiply(product, ring, sums, num_tokens);
    __syncthreads();
    const Workspace space = {partial_sums, counters, exchanges};
    finish(product, own_tiles, sums, space, {out, residual, out_stride, out_is_float != 0}, num_tokens);
}
