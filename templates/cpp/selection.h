// Selections on vectors in scratch memory, and reads and writes at computed positions.
#pragma once

#include "memory.h"
#include "threads.h"

namespace compll {

// --- computed positions: out of range, an element reads 0, and `outside` says that it was asked for ------
inline void note(int32_t& outside) { __atomic_store_n(&outside, 1, __ATOMIC_RELAXED); }
// A loop of its own: sixteen lanes laid out wherever something is gathered are more code than caches hold.
template <class V, class F>
__attribute__((noinline)) V gather_each(int64_t n, Int64 at, Mask asked, int32_t& outside, F element) {
    int64_t place[WIDTH];
    Element<V> out[WIDTH];
    std::memcpy(place, &at, sizeof at);
    Mask there;
#pragma GCC unroll 1
    for (int j = 0; j < WIDTH; ++j) {
        const bool inside = place[j] >= 0 && place[j] < n;
        out[j] = inside ? Element<V>(element(place[j])) : Element<V>(0);
        there[j] = -int32_t(inside);
    }
    if (any(asked & ~there)) note(outside);
    V lanes;
    std::memcpy(&lanes, out, sizeof lanes);
    return lanes;
}
template <class V, class T> inline V gather(const T* p, int64_t n, Int64 at, Mask asked, int32_t& outside) {
#if defined(__AVX512DQ__)
    if constexpr (sizeof(T) == 4 && sizeof(Element<V>) == 4) {
        using Places = long long __attribute__((vector_size(64)));
        using Eight = float __attribute__((vector_size(32)));
        Places place[2];
        Eight found[2];
        uint32_t there = 0;
        std::memcpy(place, &at, sizeof at);
        for (int half = 0; half < 2; ++half) {
            const uint8_t inside = __builtin_ia32_ucmpq512_mask(place[half], Places{} + (n > 0 ? n : 0), 1, 0xff);
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
template <class V> inline V in_order(V x, Int32 order) {
    if constexpr (sizeof(V) == sizeof(Int32)) return __builtin_shuffle(x, order);
    else return __builtin_shuffle(x, __builtin_convertvector(order, Int64));
}
template <class V, class T>
__attribute__((noinline)) V near_end(const T* p, int64_t n, int64_t first, Int32 order, Mask asked, int32_t& outside) {
    return gather_each<V>(n, __builtin_convertvector(order, Int64) + first, asked, outside, [&](int64_t i) { return p[i]; });
}
template <class V, class T> inline V near(const T* p, int64_t n, int64_t first, Int32 order, Mask asked, int32_t& outside) {
    if (first < 0 || first + WIDTH > n) return near_end<V>(p, n, first, order, asked, outside);
    return in_order(load<V, true>(p + first, WIDTH), order);
}
template <class V, int W> inline V near_codes(const uint8_t* p, int64_t n, int64_t first, Int32 order, Mask asked, int32_t& outside) {
    if (first < 0 || first + WIDTH > n) return gather_bits<V, W>(p, n, __builtin_convertvector(order, Int64) + first, asked, outside);
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
// Entries of a table, at positions that are in range.
template <class V, int N, class T> inline V lookup(const T (&table)[N], Int32 at) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4 && sizeof(Element<V>) == 4 && N <= 2 * WIDTH) {
        alignas(64) T entries[2 * WIDTH] = {};
        std::memcpy(entries, table, sizeof table);
        const Lanes<T>*const rows = (const Lanes<T>*)entries;
        if constexpr (N <= WIDTH) return (V)__builtin_shuffle(rows[0], at);
        else return (V)__builtin_shuffle(rows[0], rows[1], at);
    } else if constexpr (sizeof(T) == 4 && sizeof(Element<V>) == 4)
        return (V)__builtin_ia32_gathersiv16sf(Float{}, table, at, -1, 4);
#endif
    return each<V>([&](int j) { return table[at[j]]; });
}
// The search below in a table that one register holds: beyond the end nothing is below.
constexpr int half_of(int n) { return n < 2 ? 1 : 2 * half_of(n / 2); }  // the greatest power of two up to n
template <int FROM, int N, class T, int... J> inline Lanes<T> row_from(const T (&table)[N], std::integer_sequence<int, J...>) {
    constexpr T none = std::numeric_limits<T>::has_quiet_NaN ? std::numeric_limits<T>::quiet_NaN() : std::numeric_limits<T>::max();
    return Lanes<T>{(FROM + J < N ? table[FROM + J < N ? FROM + J : 0] : none)...};
}
template <int STEP, int N, class T> inline Int32 search_row(const T (&table)[N], Int32 below, Lanes<T> x) {
    const Lanes<T> row = row_from<STEP - 1>(table, std::make_integer_sequence<int, WIDTH>());
    const Mask more = lt(STEP == half_of(N) ? splat<Lanes<T>>(row[0]) : __builtin_shuffle(row, below), x);
    below = select(more, below + STEP, below);
    if constexpr (STEP == 1) return below;
    else return search_row<STEP / 2>(table, below, x);
}
// How many of the ascending entries are below x: all are compared if they are few, else they are halved.
template <class R, int N, class T, class X> inline R search(const T (&table)[N], int, X x) {
    if constexpr (std::is_arithmetic_v<X>) {
        int step = 1, below = 0;
        while (2 * step <= N) step *= 2;
        for (; step; step /= 2)
            if (below + step <= N && table[below + step - 1] < x) below += step;
        return R(below);
    } else if constexpr (N <= WIDTH) {
        Int32 below{};
#if defined(__AVX512F__)
        if constexpr (sizeof(T) == 4 && N > 2 && N < WIDTH) return widen<R>(search_row<half_of(N)>(table, Int32{}, x));
#endif
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) below -= lt(splat<X>(table[i]), x);
        return widen<R>(below);
    } else {
        int step = 1;
        while (2 * step <= N) step *= 2;
        Int32 below{};
        for (; step; step /= 2) {
            const Int32 at = below + (step - 1);  // beyond the end nothing is below
            const Mask there = at < N;
            below += there & lt(lookup<X>(table, at & there), x) & step;
        }
        return widen<R>(below);
    }
}
inline bool ascends(const int64_t* index, int64_t count, int64_t below) {
    bool fits = count <= 0 || (index[0] >= 0 && index[count - 1] < below);
    for (int64_t i = 1; i < count; ++i) fits &= index[i - 1] < index[i];
    return fits;
}

// --- filter: the positions of the bits that are set, the first `limit` of them ----------------------------
struct TileBits {
    uint64_t words[TILE / 64] = {};
    TileBits(const uint8_t* bits, int64_t tile, int64_t length) {
        const int64_t rest = length - tile * TILE;
        std::memcpy(words, bits + tile * (TILE / 8), rest < TILE ? (rest + 7) / 8 : TILE / 8);
    }
};
// Make of counts the sums of those before; return the sum of all.
inline int64_t sums_before(int64_t* counts, int64_t size) {
    int64_t sum = 0;
    for (int64_t i = 0; i < size; ++i) {
        const int64_t own = counts[i];
        counts[i] = sum;
        sum += own;
    }
    return sum;
}
inline int64_t compact(const uint8_t* bits, int64_t length, int64_t limit, int64_t* out, int64_t* first, int threads) {
    const int64_t tiles = length > 0 ? (length + TILE - 1) / TILE : 0;
    limit = limit < 0 ? 0 : limit > length ? length : limit;
    for_tiles(tiles, threads, [&](int64_t tile) {
        int64_t count = 0;
        for (uint64_t word : TileBits(bits, tile, length).words) count += __builtin_popcountll(word);
        first[tile] = count;
    });
    const int64_t found = sums_before(first, tiles);
    for_tiles(tiles, threads, [&](int64_t tile) {
        int64_t at = first[tile], base = tile * TILE;
        if (at >= limit || (tile + 1 < tiles ? first[tile + 1] : found) == at) return;
        for (uint64_t word : TileBits(bits, tile, length).words) {
            for (; word && at < limit; word &= word - 1) out[at++] = base + __builtin_ctzll(word);
            base += 64;
        }
    });
    return found < limit ? found : limit;
}

// --- keys: integers whose order is that of the elements ---------------------------------------------------
template <class K> inline std::make_unsigned_t<K> unsigned_key(K key) {
    using U = std::make_unsigned_t<K>;
    return std::is_signed_v<K> ? U(U(key) ^ (U(1) << (sizeof(U) * 8 - 1))) : U(key);
}
// Visit the keys from `at` to `end` that `match`, sixteen at a time: where only few do, most are passed over.
template <class K, class M, class F> inline void for_matching(const K* keys, int64_t at, int64_t end, M match, F visit) {
    if constexpr (std::is_same_v<K, uint32_t>) {
        for (; at + WIDTH <= end; at += WIDTH)
            for (uint32_t bits = mask_bits(match(load<UInt32, true>(keys + at, WIDTH))); bits; bits &= bits - 1)
                visit(at + __builtin_ctz(bits));
    }
    for (; at < end; ++at)
        if (match(unsigned_key(keys[at]))) visit(at);
}
constexpr int BINS = 2048, PARTS = 16;  // digits of 11 bits are counted in so many parts at once
// The key of `rank` in ascending order, and how many keys are below it; 0 <= rank < length.  `bins` are
// BINS for each of the parts.
template <class K> struct Ranked { std::make_unsigned_t<K> key; int64_t below; };
template <class K> inline Ranked<K> key_of_rank(const K* keys, int64_t length, int64_t rank, int64_t* bins, int64_t parts, int threads) {
    using U = std::make_unsigned_t<K>;
    constexpr int WHOLE = sizeof(U) * 8;
    U prefix = 0;
    int64_t below = 0;
    for (int left = WHOLE; left > 0;) {
        const int width = left < 11 ? left : 11, shift = left - width;
        for_tiles<1>(parts, threads, [&](int64_t part) {
            int64_t* own = bins + part * BINS;
            std::memset(own, 0, sizeof(int64_t) * BINS);
            const int64_t end = length * (part + 1) / parts;
            const auto digit = [&](int64_t i) { return (unsigned_key(keys[i]) >> shift) & ((U(1) << width) - 1); };
            int64_t i = length * part / parts;
            if (left < WHOLE) {
                const auto match = [&](auto key) { return eq(shift_right(key, splat<decltype(key)>(left)), splat<decltype(key)>(prefix)); };
                for_matching(keys, i, end, match, [&](int64_t at) { ++own[digit(at)]; });
                return;
            }
            uint32_t counts[4][BINS] = {};  // in turns: to count into the place of the key before takes time
            for (int64_t most = i; i < end;) {
                most = end - i < 1 << 30 ? end : i + (1 << 30);
                for (; i + 4 <= most; i += 4)
                    for (int turn = 0; turn < 4; ++turn) ++counts[turn][digit(i + turn)];
                for (; i < most; ++i) ++counts[0][digit(i)];
                for (int b = 0; b < BINS; ++b)
                    for (uint32_t(&count)[BINS] : counts) {
                        own[b] += count[b];
                        count[b] = 0;
                    }
            }
        });
        for (int64_t part = 1; part < parts; ++part)
            for (int b = 0; b < BINS; ++b) bins[b] += bins[part * BINS + b];
        int b = 0;
        while (below + bins[b] <= rank) below += bins[b++];
        prefix = U(prefix << (left == WHOLE ? 0 : width)) | U(b);
        left = shift;
    }
    return {prefix, below};
}
// The ascending positions of the k smallest keys of a few, ties to the lower position; from `base` on.
template <class K> inline void select_few(const K* keys, int64_t count, int64_t k, int64_t base, int64_t* out) {
    using U = std::make_unsigned_t<K>;
    if (k <= 0) return;
    U key = 0;  // of rank k - 1, bit by bit
    for (int bit = sizeof(U) * 8 - 1; bit >= 0; --bit) {
        const U middle = key | U((U(1) << bit) - 1);
        int64_t within = 0;
        for (int64_t i = 0; i < count; ++i) within += unsigned_key(keys[i]) <= middle;
        if (within < k) key |= U(1) << bit;
    }
    int64_t ties = k;
    for (int64_t i = 0; i < count; ++i) ties -= unsigned_key(keys[i]) < key;
    for (int64_t i = 0; i < count; ++i) {
        const U own = unsigned_key(keys[i]);
        if (own < key || (own == key && ties-- > 0)) *out++ = base + i;
    }
}
template <class K> inline void select_least(const K* keys, int64_t length, int64_t k, int64_t block, int64_t* out, int64_t* work, int threads) {
    k = k < 0 ? 0 : k > length ? length : k;
    if (k <= 0) return;
    if (block > 0) {
        const int64_t each = k < block ? k : block, blocks = (length + block - 1) / block;
        for_tiles<4>(blocks, threads, [&](int64_t b) {
            const int64_t count = length - b * block < block ? length - b * block : block;
            select_few(keys + b * block, count, each < count ? each : count, b * block, out + b * each);
        });
        return;
    }
    const Ranked<K> last = key_of_rank(keys, length, k - 1, work, length < 64 * TILE ? 1 : PARTS, threads);
    const int64_t tiles = (length + TILE - 1) / TILE;
    int64_t *below = work + PARTS * BINS, *equal = below + tiles;
    const auto for_keys = [&](int64_t tile, auto visit) {  // those that are no greater than the last
        const int64_t end = length - tile * TILE < TILE ? length : (tile + 1) * TILE;
        const auto match = [&](auto key) { return le(key, splat<decltype(key)>(last.key)); };
        for_matching(keys, tile * TILE, end, match, [&](int64_t i) { visit(i, unsigned_key(keys[i])); });
    };
    for_tiles(tiles, threads, [&](int64_t tile) {
        int64_t less = 0, same = 0;
        for_keys(tile, [&](int64_t, auto key) { less += key < last.key; same += key == last.key; });
        below[tile] = less;
        equal[tile] = same;
    });
    sums_before(below, tiles);
    sums_before(equal, tiles);
    const int64_t ties = k - last.below;
    for_tiles(tiles, threads, [&](int64_t tile) {
        int64_t tie = equal[tile];
        int64_t* to = out + below[tile] + (tie < ties ? tie : ties);
        for_keys(tile, [&](int64_t i, auto key) { if (key < last.key || (key == last.key && tie++ < ties)) *to++ = i; });
    });
}

// --- sort: stable, by digits of 8 bits; a few elements by insertion ----------------------------------------
template <class K, class V> inline void arrange_few(K* keys, V* values, int64_t count) {
    for (int64_t i = 1; i < count; ++i) {
        const K key = keys[i];
        const V value = values[i];
        int64_t at = i;
        for (; at > 0 && key < keys[at - 1]; --at) {
            keys[at] = keys[at - 1];
            values[at] = values[at - 1];
        }
        keys[at] = key;
        values[at] = value;
    }
}
template <class K, class V> inline void arrange_many(K* keys, V* values, K* spare_keys, V* spare, int64_t count) {
    for (int shift = 0; shift < int(sizeof(K)) * 8; shift += 8) {  // an even number of times: they end in place
        int64_t first[256] = {};
        for (int64_t i = 0; i < count; ++i) ++first[(unsigned_key(keys[i]) >> shift) & 255];
        sums_before(first, 256);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t to = first[(unsigned_key(keys[i]) >> shift) & 255]++;
            spare_keys[to] = keys[i];
            spare[to] = values[i];
        }
        std::swap(keys, spare_keys);
        std::swap(values, spare);
    }
}
template <class K, class V> inline void arrange(K* keys, V* values, K* spare_keys, V* spare, int64_t length, int64_t block, int threads) {
    if (length <= 0) return;
    const int64_t size = block > 0 && block < length ? block : length;
    for_tiles<4>((length + size - 1) / size, threads, [&](int64_t b) {
        const int64_t at = b * size, count = length - at < size ? length - at : size;
        if (count <= 64) arrange_few(keys + at, values + at, count);
        else arrange_many(keys + at, values + at, spare_keys + at, spare + at, count);
    });
}
// The element of `rank` in the order of the keys, which is stable.
template <class K, class V> inline V nth(const K* keys, const V* values, int64_t length, int64_t rank, int32_t& outside) {
    if (rank < 0 || rank >= length) {
        note(outside);
        return V{};
    }
    int64_t bins[BINS];
    const Ranked<K> found = key_of_rank(keys, length, rank, bins, 1, 1);
    int64_t before = rank - found.below, at = 0;
    while (unsigned_key(keys[at]) != found.key || before-- > 0) ++at;
    return values[at];
}

}  // namespace compll
