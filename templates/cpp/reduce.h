// The one order of reduction: 8 rows of 128 lanes a tile, rows in order, lanes by halves; then the tiles.
#pragma once

#include "memory.h"

namespace compll {

// Lane j < w becomes f(a[j], a[j + w]) for w = 64, 32, ..., 1; lanes from `lanes` on are absent.
template <class V, class F> inline Element<V> fold_any(V (&a)[BLOCKS], int lanes, F f) {
    Element<V> x[LANES];
    for (int k = 0; k < BLOCKS; ++k)
        for (int j = 0; j < WIDTH; ++j) x[k * WIDTH + j] = a[k][j];
    for (int w = LANES / 2; w; w /= 2)
        for (int j = 0; j < w && j + w < lanes; ++j) x[j] = f(x[j], x[j + w]);
    return x[0];
}
template <int KNOWN, class V, class F> inline Element<V> fold_known(V (&a)[BLOCKS], F f) {  // a multiple of 16
    for (int w = BLOCKS / 2; w; w /= 2)
        for (int k = 0; k < w && k + w < KNOWN / WIDTH; ++k) a[k] = f(a[k], a[k + w]);
    if constexpr (sizeof(V) == sizeof(Int32)) {  // all lanes at once, of which the first w count
        V x = a[0];
        x = f(x, __builtin_shuffle(x, Int32{8, 9, 10, 11, 12, 13, 14, 15}));
        x = f(x, __builtin_shuffle(x, Int32{4, 5, 6, 7}));
        x = f(x, __builtin_shuffle(x, Int32{2, 3}));
        return f(x, __builtin_shuffle(x, Int32{1}))[0];
    } else {
        Element<V> x[WIDTH];
        for (int j = 0; j < WIDTH; ++j) x[j] = a[0][j];
        for (int w = WIDTH / 2; w; w /= 2)
            for (int j = 0; j < w; ++j) x[j] = f(x[j], x[j + w]);
        return x[0];
    }
}
template <bool FULL, class V, class F> inline Element<V> fold(V (&a)[BLOCKS], int lanes, F f) {
    if constexpr (FULL) return fold_known<LANES>(a, f);
    else return fold_any(a, lanes, f);
}
template <bool FULL, class T, class F> inline T reduce_tile(const T* x, int count, F f) {
    using V = Lanes<T>;
    V a[BLOCKS];
    for (int k = 0; k < BLOCKS; ++k)
        for (int row = 0; row < ROWS; ++row) {
            const int at = row * LANES + k * WIDTH;
            if (!FULL && at >= count) break;
            const int live = FULL ? WIDTH : count - at < WIDTH ? count - at : WIDTH;
            const V v = load<V, FULL>(x + at, live);
            if (row == 0) a[k] = v;
            else a[k] = FULL ? f(a[k], v) : select(first_lanes(live), f(a[k], v), a[k]);
        }
    return fold<FULL>(a, count < LANES ? count : LANES, f);
}
// Reduce the results of `count` tiles, in place, by the same rule.
template <class T, class F> inline T reduce_tiles(T* x, int64_t count, F f) {
    while (count > 1) {
        const int64_t tiles = (count + TILE - 1) / TILE;
        for (int64_t t = 0; t < tiles; ++t) {
            const int64_t rest = count - t * TILE;
            x[t] = rest >= TILE ? reduce_tile<true>(x + t * TILE, TILE, f) : reduce_tile<false>(x + t * TILE, int(rest), f);
        }
        count = tiles;
    }
    return x[0];
}

// The same rule for tile results that come one after the other: `add` each, then `result`.
template <class T, class F> struct Tree {
    static constexpr int DEPTH = 3;  // 2^40 elements
    T held[DEPTH][TILE];
    int count[DEPTH] = {};
    F f;
    void add(T x, int level = 0) {
        if (count[level] == TILE) {  // only now is it known that this level goes on
            add(reduce_tile<true>(held[level], TILE, f), level + 1);
            count[level] = 0;
        }
        held[level][count[level]++] = x;
    }
    T result() {
        for (int level = 0;; ++level) {
            const T x = reduce_tiles(held[level], count[level], f);
            if (level + 1 == DEPTH || count[level + 1] == 0) return x;
            add(x, level + 1);
        }
    }
};

}  // namespace compll
