// Reads and writes at computed positions: of vectors in memory, and of tables of constants.
#pragma once

#include "memory.h"

namespace compll {

// --- computed positions: out of range, an element reads 0, and `outside` says that it was asked for ------
inline void note(int32_t& outside) { __atomic_store_n(&outside, 1, __ATOMIC_RELAXED); }
// A loop of its own: sixteen lanes laid out wherever something is gathered are more code than caches hold.
template <class V, class F>
__attribute__((noinline)) V gather_each(int64_t n, Int64 at, Mask asked, int32_t& outside, F element) {
    int64_t place[WIDTH];
    Element<V> out[WIDTH];
    std::memcpy(place, &at, sizeof at);
    int32_t inside[WIDTH];
#pragma GCC unroll 1
    for (int j = 0; j < WIDTH; ++j) {
        inside[j] = place[j] >= 0 && place[j] < n ? -1 : 0;
        out[j] = inside[j] ? Element<V>(element(place[j])) : Element<V>(0);
    }
    Mask there;
    std::memcpy(&there, inside, sizeof there);
    if (any(asked & ~there)) note(outside);
    V lanes;
    std::memcpy(&lanes, out, sizeof lanes);
    return lanes;
}
template <class V, class T> inline V gather(const T* p, int64_t n, Int64 at, Mask asked, int32_t& outside) {
#if defined(__AVX512DQ__)
    if constexpr (sizeof(T) == 4 && sizeof(Element<V>) == 4) {
        using Eight = Whole<float, 8>;
        const Quads place[2] = {(Quads)at.low, (Quads)at.high};
        Eight found[2];
        uint32_t there = 0;
        for (int half = 0; half < 2; ++half) {
            const uint8_t inside = __builtin_ia32_ucmpq512_mask(place[half], Quads{} + (n > 0 ? n : 0), 1, 0xff);
            found[half] = __builtin_ia32_gatherdiv16sf(Eight{}, p, place[half], inside, 4);
            there |= uint32_t(inside) << 8 * half;
        }
        if (mask_bits(asked) & ~there) note(outside);
        V lanes;
        std::memcpy(&lanes, found, sizeof lanes);
        return lanes;
    }
#endif
    return gather_each<V>(n, at, asked, outside, [&](int64_t i) { return p[i]; });
}
template <int W> inline int64_t bits_at(const uint8_t* p, int64_t i) {  // element i of a packed vector
    const int64_t bit = i * W;
    uint32_t two = p[bit / 8];
    if (bit % 8 + W > 8) two |= uint32_t(p[bit / 8 + 1]) << 8;
    return (two >> (bit % 8)) & ((1u << W) - 1);
}
template <class V, int W> inline V gather_bits(const uint8_t* p, int64_t n, Int64 at, Mask asked, int32_t& outside) {
    return gather_each<V>(n, at, asked, outside, [&](int64_t i) { return bits_at<W>(p, i); });
}
// The 16 elements from `first` on, lane j that of number order[j]: one load where they are all in range.
template <class V, class O> COMPLL_ALWAYS Vector<Element<V>, COUNT<O>> in_order(const V& x, const O& order) {
    using To = Vector<Element<V>, COUNT<O>>;
    if constexpr (sizeof(Element<V>) != 4) return each<To>([&](int j) { return x[order[j]]; });
    else if constexpr (IS_HALVES<O>) return {in_order(x, order.low), in_order(x, order.high)};
    else if constexpr (!IS_HALVES<V>) return __builtin_shuffle(x, order);
    else if constexpr (!IS_HALVES<Half<V>>) return __builtin_shuffle(x.low, x.high, order);
    else return select(ne(order & COUNT<V> / 2, O{}), in_order(x.high, order), in_order(x.low, order));
}
template <class V, class T>
__attribute__((noinline)) V near_end(const T* p, int64_t n, int64_t first, Int32 order, Mask asked, int32_t& outside) {
    return gather_each<V>(n, converted<Int64>(order) + first, asked, outside, [&](int64_t i) { return p[i]; });
}
template <class V, class T> inline V near(const T* p, int64_t n, int64_t first, Int32 order, Mask asked, int32_t& outside) {
    if (first < 0 || first + WIDTH > n) return near_end<V>(p, n, first, order, asked, outside);
    return in_order(load<V, true>(p + first, WIDTH), order);
}
template <class V, int W> inline V near_codes(const uint8_t* p, int64_t n, int64_t first, Int32 order, Mask asked, int32_t& outside) {
    if (first < 0 || first + WIDTH > n) return gather_bits<V, W>(p, n, converted<Int64>(order) + first, asked, outside);
    return widen<V>(in_order(take_codes<W>(p + first / 8 * W), order));
}
template <class V, class T> inline V near_one(const T* p, int64_t n, int64_t at, Mask asked, int32_t& outside) {
    if (at >= 0 && at < n) return splat<V>(Element<V>(p[at]));
    if (any(asked)) note(outside);
    return V{};
}
template <class R, class T> inline R read_at(const T* p, int64_t n, int64_t at, int32_t& outside) {
    if (at >= 0 && at < n) return R(p[at]);
    note(outside);
    return R{};
}
template <int W> inline int64_t read_bits(const uint8_t* p, int64_t n, int64_t at, int32_t& outside) {
    if (at >= 0 && at < n) return bits_at<W>(p, at);
    note(outside);
    return 0;
}
template <bool FULL, class T, class V> inline void scatter(T* p, Int64 at, V x, int live) {
    for (int j = 0; j < (FULL ? WIDTH : live); ++j) p[at[j]] = T(x[j]);
}
// --- tables of constants: `TABLE` is an array ---------------------------------------------------------------
template <const auto& TABLE> constexpr int ENTRIES = sizeof(TABLE) / sizeof(TABLE[0]);
template <const auto& TABLE> using Entry = Element<decltype(TABLE)>;
template <class T, int N> struct Rows {  // whole ones of WIDTH entries
    alignas(64) T entry[(N + WIDTH - 1) / WIDTH * WIDTH] = {};
};
#if defined(__AVX512DQ__)
constexpr int MOST_PICKED = 256;  // entries that are found faster in registers than in the cache
#elif defined(__AVX2__)
constexpr int MOST_PICKED = 64;
#else
constexpr int MOST_PICKED = 0;
#endif
constexpr int MOST_HALVED = 256;  // entries that are searched as a tree, whose first levels are in registers
template <class V, const auto& TABLE> constexpr bool PICKED = sizeof(Entry<TABLE>) == 4 && sizeof(Element<V>) == 4 && ENTRIES<TABLE> <= MOST_PICKED;
template <class V, class T> inline V gather_32(const T* p, Int32 at) {  // of positions that are in range
#if defined(__AVX512DQ__)
    if constexpr (sizeof(T) == 4 && sizeof(Element<V>) == 4) return (V)__builtin_ia32_gathersiv16sf(Float{}, p, at, -1, 4);
#endif
    return by_register<V>([&](auto some) { return listed<Vector<Element<V>, COUNT<Ints>>>([&](int j) { return p[some[j]]; }); }, at);
}
// One of SIZE entries from `first` on: beyond two registers, of the half that the first of the `turns` tells.
template <class V, int SIZE, class T, int N> inline V entry_of(const Rows<T, N>& rows, int first, Int32 at, const Mask* turns) {
    constexpr int EACH = COUNT<Ints>;
    if constexpr (SIZE > MOST_PICKED) return gather_32<V>(rows.entry, at);
    else if constexpr (SIZE <= 2 * EACH) {
        const T* p = rows.entry + (first & -EACH);
        return by_register<V>([&](auto some) {
            const auto one = load_all<Register<T>>(p);
            if constexpr (SIZE <= EACH) return (Register<Element<V>>)__builtin_shuffle(one, some);
            else return (Register<Element<V>>)__builtin_shuffle(one, load_all<Register<T>>(p + EACH), some);
        }, at);
    } else return select(turns[0], entry_of<V, SIZE / 2>(rows, first + SIZE / 2, at, turns + 1), entry_of<V, SIZE / 2>(rows, first, at, turns + 1));
}
constexpr int levels_of(int entries) { return entries ? 1 + levels_of(entries / 2) : 0; }
template <const auto& TABLE, int SIZE> constexpr auto in_rows() {
    Rows<Entry<TABLE>, SIZE> rows;
    for (int i = 0; i < ENTRIES<TABLE>; ++i) rows.entry[i] = TABLE[i];
    return rows;
}
// Entries at positions that are in range.
template <class V, const auto& TABLE> inline V lookup(Int32 at) {
    if constexpr (PICKED<V, TABLE>) {
        constexpr int SIZE = 1 << levels_of(ENTRIES<TABLE> - 1);
        static constexpr auto rows = in_rows<TABLE, SIZE>();
        const Mask turns[] = {ne(at & SIZE / 2, Int32{}), ne(at & SIZE / 4, Int32{}), ne(at & SIZE / 8, Int32{})};
        return entry_of<V, SIZE>(rows, 0, at, turns);
    }
    return gather_32<V>(TABLE, at);
}
// The entries as nodes of a binary tree: 1 is the root, 2 i and 2 i + 1 are below i.  What is missing at the end is
// below nothing.
template <const auto& TABLE, int LEVELS> constexpr auto as_tree() {
    using T = Entry<TABLE>;
    Rows<T, 1 << LEVELS> tree;
    for (int level = 0; level < LEVELS; ++level)
        for (int i = 0; i < 1 << level; ++i) {
            const int place = ((2 * i + 1) << (LEVELS - 1 - level)) - 1;
            const T never = std::is_floating_point_v<T> ? std::numeric_limits<T>::quiet_NaN() : std::numeric_limits<T>::max();
            tree.entry[(1 << level) + i] = place < ENTRIES<TABLE> ? TABLE[place] : never;
        }
    return tree;
}
template <int LEVEL, int LEVELS, class Tree, class X> inline Int32 descend(const Tree& tree, Int32 node, Mask* turns, X x) {
    if constexpr (LEVEL == LEVELS) return node - (1 << LEVELS);
    else {
        turns[LEVEL] = lt(entry_of<X, 1 << LEVEL>(tree, 1 << LEVEL, node, turns), x);
        return descend<LEVEL + 1, LEVELS>(tree, node + node - turns[LEVEL], turns, x);
    }
}
// How many of the ascending entries are below x: all are compared if they are few, else they are halved.
template <class R, const auto& TABLE, class X> inline R search(X x) {
    constexpr int N = ENTRIES<TABLE>, LEVELS = levels_of(N), TOP = 1 << LEVELS >> 1;
    if constexpr (std::is_arithmetic_v<X>) {
        int below = 0;
        for (int step = TOP; step; step /= 2)
            if (below + step <= N && TABLE[below + step - 1] < x) below += step;
        return R(below);
    } else if constexpr (MOST_PICKED && N > 2 && N <= MOST_HALVED && sizeof(Entry<TABLE>) == 4 && sizeof(Element<X>) == 4) {
        static constexpr auto tree = as_tree<TABLE, LEVELS>();
        Mask turns[LEVELS];
        return widen<R>(descend<0, LEVELS>(tree, splat<Int32>(1), turns, x));
    } else if constexpr (N <= WIDTH) {
        Int32 below{};
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) below -= lt(splat<X>(TABLE[i]), x);
        return widen<R>(below);
    } else {
        Int32 below{};
        for (int step = TOP; step; step /= 2) {
            const Int32 at = below + (step - 1);  // beyond the end nothing is below
            const Mask there = lt(at, splat<Int32>(N));
            below += there & lt(lookup<X, TABLE>(at & there), x) & step;
        }
        return widen<R>(below);
    }
}

}  // namespace compll
