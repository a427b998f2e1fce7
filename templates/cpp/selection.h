// Selections on vectors in scratch memory.
#pragma once

#include "memory.h"
#include "threads.h"

namespace compll {

// --- scatter ----------------------------------------------------------------------------------------------
// Set elements to 0: the system's way does not read what it overwrites.
template <class T> inline void clear(T* p, int64_t length, int threads) {
    constexpr int64_t PART = CHUNK * TILE;
    for_tiles<1>(length > 0 ? (length + PART - 1) / PART : 0, threads, [&](int64_t part) {
        std::memset((void*)(p + part * PART), 0, sizeof(T) * (length - part * PART < PART ? length - part * PART : PART));
    });
}
inline bool ascends(const int64_t* index, int64_t count, int64_t below) {
    bool fits = count <= 0 || (index[0] >= 0 && index[count - 1] < below);
    for (int64_t i = 1; i < count; ++i) fits &= index[i - 1] < index[i];
    return fits;
}

// --- filter: passes keep what they select, in a part of memory for each `granule` of tiles -----------------
// Those tiles one thread goes through in order.  A part has room for WIDTH elements more than can be kept.
struct Kept {
    int64_t& found;
    int64_t from, count;
    Int32 places;  // of a tile's first lanes, from the part's begin on
    Kept(int64_t* all, int64_t tile, int64_t granule)
        : found(all[tile / granule]), from(tile / granule * (granule * TILE + WIDTH)), count(tile % granule ? found : 0),
          places(numbers<Int32>() + int32_t(tile % granule * TILE)) {}
    template <class T, class V> void put(T* parts, uint32_t bits, V x) const {
        T* to = parts + from + count;
#if defined(__AVX512DQ__)
        const auto kept = __builtin_ia32_compresssi512_mask((Int32)x, Int32{}, bits);
        std::memcpy(to, &kept, sizeof kept);
#else
        Element<V> all[WIDTH];
        std::memcpy(all, &x, sizeof x);
        for (; bits; bits &= bits - 1) *to++ = all[__builtin_ctz(bits)];
#endif
    }
    void end() const { found = count; }
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
inline void copy(int64_t, int64_t, int64_t) {}
template <class T, class... Others> inline void copy(int64_t at, int64_t from, int64_t count, T* out, const T* parts, Others... others) {
    std::memcpy(out + at, parts + from, sizeof(T) * count);
    copy(at, from, count, others...);
}
// Put the parts together: the positions, and the elements of other vectors there; the first `limit` of them.
template <int64_t GRANULE, class... Vectors>
inline int64_t join(int64_t length, int64_t limit, int64_t* found, int threads, int64_t* out, const uint32_t* places, Vectors... vectors) {
    constexpr int64_t PART = GRANULE * TILE;
    const int64_t parts = length > 0 ? (length + PART - 1) / PART : 0;
    limit = limit < 0 ? 0 : limit > length ? length : limit;
    const int64_t all = sums_before(found, parts);
    for_tiles<1>(parts, threads, [&](int64_t part) {
        const int64_t at = found[part], end = part + 1 < parts ? found[part + 1] : all, from = part * (PART + WIDTH);
        const int64_t count = (end < limit ? end : limit) - at;
        for (int64_t j = 0; j < count; ++j) out[at + j] = part * PART + places[from + j];
        if (count > 0) copy(at, from, count, vectors...);
    });
    return all < limit ? all : limit;
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
template <class K> inline void select_in_blocks(const K* keys, int64_t length, int64_t k, int64_t block, int64_t* out, int threads) {
    const int64_t each = k < block ? k : block, blocks = length > 0 ? (length + block - 1) / block : 0;
    for_tiles<4>(blocks, threads, [&](int64_t b) {
        const int64_t count = length - b * block < block ? length - b * block : block;
        select_few(keys + b * block, count, each < count ? each : count, b * block, out + b * each);
    });
}
// The same of many, by digits; 0 < k <= length.
template <class K> inline void select_many(const K* keys, int64_t length, int64_t k, int64_t* out, int64_t* work, int threads) {
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

// Those that a sample tells to be among the least, with room for a quarter of all; `places` and `kept` have parts
// as filters have them.
template <class K> struct Near {
    int64_t* found;
    uint32_t* places;
    K* kept;
    int64_t* at;
    K* keys;
};
constexpr int64_t SAMPLE = 16384;
template <class K> inline int64_t find_near(const K* keys, int64_t length, int64_t k, int64_t* work, const Near<K>& near, int threads) {
    constexpr int64_t PART = CHUNK * TILE;
    const int64_t size = length / TILE < SAMPLE ? length / TILE : SAMPLE;
    const float share = float(k) / float(length) * float(size);
    const int64_t rank = int64_t(share + 5 * sqrt_(share)) + 8;  // so many of the sample are least that k of all are
    if (rank >= size) return 0;
    for (int64_t j = 0; j < size; ++j) near.kept[j] = keys[length / size * j];
    const auto most = key_of_rank(near.kept, size, rank, work, 1, 1).key;
    for_tiles<1>((length + PART - 1) / PART, threads, [&](int64_t part) {
        const int64_t begin = part * PART, end = begin + PART < length ? begin + PART : length;
        int64_t to = part * (PART + WIDTH);
        const auto match = [&](auto key) { return le(key, splat<decltype(key)>(most)); };
        for_matching(keys, begin, end, match, [&](int64_t i) {
            near.places[to] = uint32_t(i - begin);
            near.kept[to++] = keys[i];
        });
        near.found[part] = to - part * (PART + WIDTH);
    });
    return join<CHUNK>(length, length / 4, near.found, threads, near.at, near.places, near.keys, near.kept);
}
template <class K> inline void select_least(const K* keys, int64_t length, int64_t k, int64_t* out, int64_t* work, const Near<K>& near, int threads) {
    k = k < 0 ? 0 : k > length ? length : k;
    if (k <= 0) return;
    const int64_t found = k < length / 16 ? find_near(keys, length, k, work, near, threads) : 0;
    if (found < k || found >= length / 4) return select_many(keys, length, k, out, work, threads);
    select_many(near.keys, found, k, out, work, threads);
    for_tiles<1>((k + TILE - 1) / TILE, threads, [&](int64_t tile) {
        for (int64_t j = tile * TILE; j < k && j < (tile + 1) * TILE; ++j) out[j] = near.at[out[j]];
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
