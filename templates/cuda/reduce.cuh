// The one order of reduction: 8 rows of 128 lanes a tile, rows in order, lanes by halves; then the tiles.
#pragma once

#include "memory.cuh"

namespace compll {

template <class T, class F> COMPLL_DEVICE void halve(T (&a)[QUAD], int thread, int lanes, int threads, F f) {
#pragma unroll
    for (int j = 0; j < QUAD; ++j) {
        const T other = __shfl_down_sync(ALL, a[j], threads);
        if (thread < threads && QUAD * (thread + threads) + j < lanes) a[j] = f(a[j], other);
    }
}
// Lane j < w becomes f(a[j], a[j + w]) for w = 64, 32, ..., 1; lanes from `lanes` on are absent.  The result
// is thread 0's.
template <class T, class F> COMPLL_DEVICE T fold(T (&a)[QUAD], int thread, int lanes, F f) {
#pragma unroll
    for (int threads = WARP / 2; threads; threads /= 2) halve(a, thread, lanes, threads, f);
    if (thread == 0) {  // a function of a program may read a vector: what nobody asks for is not worked out
        if (2 < lanes) a[0] = f(a[0], a[2]);
        if (3 < lanes) a[1] = f(a[1], a[3]);
        if (1 < lanes) a[0] = f(a[0], a[1]);
    }
    return a[0];
}
template <bool FULL, class T, class F> COMPLL_DEVICE T fold_tile(const T* tile, int thread, int count, F f) {
    T a[QUAD];
#pragma unroll 2
    for (int row = 0; row < ROWS; ++row) {
        const Quad<T> x = load_row<FULL>(tile, row, thread, count);
#pragma unroll
        for (int j = 0; j < QUAD; ++j)
            if (row == 0) a[j] = x.at[j];
            else if (FULL || row * LANES + QUAD * thread + j < count) a[j] = f(a[j], x.at[j]);
    }
    return fold(a, thread, count < LANES ? count : LANES, f);
}

COMPLL_BOTH constexpr int64_t blocks_of(int64_t length, int64_t block) { return length <= 0 ? 0 : (length + block - 1) / block; }
COMPLL_BOTH constexpr int64_t tiles_of(int64_t length) { return blocks_of(length, TILE); }
struct Part { int64_t item, warp, warps; };  // an item, and a warp of those that share out its tiles

// Room for the results of `tiles` tiles, and behind it for the results of the tiles of those; each begins aligned.
COMPLL_BOTH constexpr int64_t level(int64_t tiles) { return blocks_of(tiles, 16) * 16; }
COMPLL_BOTH constexpr int64_t tile_results(int64_t tiles) { return level(tiles) + level(tiles_of(tiles)); }

// Reduce the results of `count` > 0 tiles by the same rule.  All threads of the block on an item, or with
// ALONE those of one warp, call it and get the result.
template <bool ALONE = false, class T, class F> COMPLL_DEVICE T fold_tiles(T* from, int64_t count, F f) {
    T* to = from + level(count);
    const int thread = threadIdx.x % WARP;
    const int warp = ALONE ? 0 : threadIdx.x / WARP, warps = ALONE ? 1 : ITEM_THREADS / WARP;
    while (count > 1) {
        const int64_t tiles = tiles_of(count);
        for (int64_t tile = warp; tile < tiles; tile += warps) {
            const int64_t rest = count - tile * TILE;
            const T result = rest >= TILE ? fold_tile<true>(from + tile * TILE, thread, TILE, f)
                                          : fold_tile<false>(from + tile * TILE, thread, int(rest), f);
            if (thread == 0) to[tile] = result;
        }
        if constexpr (ALONE) __syncwarp();
        else __syncthreads();
        T* const read = from;
        from = to;
        to = read;
        count = tiles;
    }
    return from[0];
}

}  // namespace compll
