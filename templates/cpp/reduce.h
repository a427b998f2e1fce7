// The one order of reduction: 8 rows of 128 lanes a tile, rows in order, lanes by halves; then the tiles.
#pragma once

#include "memory.h"

namespace compll {

// `f` combines two values, or lanes of them: the first `live` of these are there, if not all.  A function of a
// program may read a vector, and must be asked for nothing that the order of reduction does not ask for.

// Lane j < w becomes f(a[j], a[j + w]) for w = 64, 32, ..., 1; lanes from `lanes` on are absent.
template <class V, class F> inline Element<V> fold_any(V (&a)[BLOCKS], int lanes, F f) {
    Element<V> x[LANES];
    for (int k = 0; k < BLOCKS; ++k)
        std::memcpy(x + k * WIDTH, &a[k], sizeof a[k]);
    for (int w = LANES / 2; w; w /= 2)
        for (int j = 0; j < w && j + w < lanes; ++j) x[j] = f(x[j], x[j + w]);
    return x[0];
}
// What w = 64, 32, 16 leave of KNOWN lanes, a multiple of 16.
template <int KNOWN, class V, class F> inline V fold_far(V (&a)[BLOCKS], F f) {
#pragma GCC unroll 3
    for (int w = BLOCKS / 2; w; w /= 2)
#pragma GCC unroll 4
        for (int k = 0; k < w; ++k)
            if (k + w < KNOWN / WIDTH) a[k] = f(a[k], a[k + w]);
    return a[0];
}
template <int W, class V> COMPLL_ALWAYS V moved_down(const V& x) {  // lane j < W becomes lane j + W; others do not count
    if constexpr (!IS_HALVES<V>) return __builtin_shuffle(x, numbers<Truth<V>>() + W);
    else if constexpr (W == COUNT<V> / 2) return {x.high, x.high};
    else return {moved_down<W>(x.low), x.high};
}
template <class V, class F> inline Element<V> fold_near(V x, F f) {  // what w = 8, 4, 2, 1 leave of 16 lanes
    x = f(x, moved_down<8>(x), 8);  // all lanes at once, of which the first w count
    x = f(x, moved_down<4>(x), 4);
    x = f(x, moved_down<2>(x), 2);
    return f(x, moved_down<1>(x), 1)[0];
}
template <int KNOWN, class V, class F> inline Element<V> fold_known(V (&a)[BLOCKS], F f) {
    return fold_near(fold_far<KNOWN>(a, f), f);
}
// Sixteen `fold_near` side by side: lane j is what x[j] is folded to.  Halves of two vectors, in turns, make one of
// 16 lanes to combine, until each vector has one lane left.
template <int W, int UPPER, class V, int... P> COMPLL_ALWAYS V halves(const V& a, const V& b, std::integer_sequence<int, P...>) {
    if constexpr (!IS_HALVES<V>) return __builtin_shuffle(a, b, Truth<V>{(P / W % 2 * COUNT<V> + (P / W / 2 * 2 + UPPER) * W + P % W)...});
    else if constexpr (W == COUNT<V> / 2) return UPPER ? V{a.high, b.high} : V{a.low, b.low};
    else {
        constexpr auto half = std::make_integer_sequence<int, COUNT<V> / 2>();
        return {halves<W, UPPER>(a.low, b.low, half), halves<W, UPPER>(a.high, b.high, half)};
    }
}
template <int W, class V, class F> inline void fold_pairs(V (&x)[WIDTH], F f) {
    constexpr auto all = std::make_integer_sequence<int, WIDTH>();
#pragma GCC unroll 8
    for (int j = 0; j < W; ++j) x[j] = f(halves<W, 0>(x[j], x[j + W], all), halves<W, 1>(x[j], x[j + W], all));
}
template <class V, class F> inline V fold_sixteen(V (&x)[WIDTH], F f) {
    fold_pairs<8>(x, f);
    fold_pairs<4>(x, f);
    fold_pairs<2>(x, f);
    fold_pairs<1>(x, f);
    return x[0];
}
// Store `init` combined with each of them.
template <class T, class V, class F> inline void fold_blocks(T* to, T init, V (&x)[WIDTH], F f) {
    const V folded = fold_sixteen(x, f);
    if constexpr (std::is_same_v<T, Element<V>>) store<true>(to, f(splat<V>(init), folded), WIDTH);
    else for (int j = 0; j < WIDTH; ++j) to[j] = f(init, T(folded[j]));
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
            else a[k] = FULL ? f(a[k], v) : select(first_lanes(live), f(a[k], v, live), a[k]);
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

}  // namespace compll
