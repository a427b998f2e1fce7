// Selections on vectors in scratch memory, and reads and writes at computed positions.
//
// What goes over tiles is called by all warps of a launch that work on an item; what a block does between such
// launches, by all its threads.  Counts are sums of integers: in whatever order they are taken, they are the same.
#pragma once

#include "reduce.cuh"

namespace compll {

// --- computed positions: out of range, an element reads 0, and `outside` says that it was asked for ------
COMPLL_DEVICE void note(int32_t* outside) { atomicMin(outside, int32_t(OUT_OF_RANGE)); }
template <class V, class P> COMPLL_DEVICE V gather(P p, int64_t n, Int64 at, Mask asked, int32_t* outside) {
    if (at >= 0 && at < n) return V(p[at]);
    if (asked) note(outside);
    return V{};
}
template <int W> struct Bits {  // the elements of a packed vector
    const uint8_t* p;
    COMPLL_DEVICE int64_t operator[](int64_t i) const {
        const int64_t bit = i * W;
        uint32_t two = p[bit / 8];
        if (bit % 8 + W > 8) two |= uint32_t(p[bit / 8 + 1]) << 8;
        return (two >> (bit % 8)) & ((1u << W) - 1);
    }
};
template <class V, int W> COMPLL_DEVICE V gather_bits(const uint8_t* p, int64_t n, Int64 at, Mask asked, int32_t* outside) {
    return gather<V>(Bits<W>{p}, n, at, asked, outside);
}
template <class R, class P> COMPLL_DEVICE R read_at(P p, int64_t n, int64_t at, int32_t* outside) {
    return gather<R>(p, n, at, true, outside);
}
template <int W> COMPLL_DEVICE int64_t read_bits(const uint8_t* p, int64_t n, int64_t at, int32_t* outside) {
    return gather<int64_t>(Bits<W>{p}, n, at, true, outside);
}
template <bool FULL, class T, class V> COMPLL_DEVICE void scatter(T* p, Int64 at, V x, int) { p[at] = static_cast<T>(x); }
// An entry of a table, at a position that is in range.
template <class V, class P> COMPLL_DEVICE V lookup(P table, Int32 at) { return V(table[at]); }
// How many of the `count` ascending entries are below x.
template <class R, class P, class X> COMPLL_DEVICE R search(P table, int count, X x) {
    R below{};
    for (int i = 0; i < count; ++i) below += X(table[i]) < x;
    return below;
}
COMPLL_DEVICE void ascends(const Part& part, const int64_t* index, int64_t count, int64_t below, int32_t& status, Status wrong) {
    for (int64_t i = part.warp * WARP + threadIdx.x % WARP; i < count; i += part.warps * WARP) {
        const bool after = i == 0 ? index[0] >= 0 : index[i - 1] < index[i];
        if (!after || (i + 1 == count && index[i] >= below)) atomicMin(&status, int32_t(wrong));
    }
}

// --- sums over a warp, and over the block on an item ------------------------------------------------------
template <class T> COMPLL_DEVICE T warp_sums(T x, int thread) {  // of the threads up to this one
#pragma unroll
    for (int by = 1; by < WARP; by *= 2) {
        const T other = __shfl_up_sync(ALL, x, by);
        if (thread >= by) x += other;
    }
    return x;
}
template <class T> COMPLL_DEVICE T warp_sum(T x) {
#pragma unroll
    for (int by = WARP / 2; by; by /= 2) x += __shfl_xor_sync(ALL, x, by);
    return x;
}
COMPLL_DEVICE unsigned threads_before(int thread) { return (1u << thread) - 1; }
COMPLL_DEVICE int64_t block_sum_before(int64_t x, int64_t& all) {  // of the threads before this one, and of all
    COMPLL_SHARED(int64_t, warps, ITEM_THREADS / WARP);
    const int thread = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int64_t sum = warp_sums(x, thread);
    __syncthreads();  // the sums of the call before have been read
    if (thread == WARP - 1) warps[warp] = sum;
    __syncthreads();
    int64_t before = sum - x;
    all = 0;
    for (int w = 0; w < ITEM_THREADS / WARP; ++w) {
        if (w < warp) before += warps[w];
        all += warps[w];
    }
    return before;
}
// Make of counts the sums of those before; return the sum of all.
COMPLL_DEVICE int64_t sums_before(int64_t* counts, int64_t size) {
    int64_t sum = 0;
    for (int64_t base = 0; base < size; base += ITEM_THREADS * QUAD) {
        const int64_t at = base + QUAD * threadIdx.x;
        int64_t own[QUAD], total = 0, all;
#pragma unroll
        for (int j = 0; j < QUAD; ++j) total += own[j] = at + j < size ? counts[at + j] : 0;
        int64_t before = sum + block_sum_before(total, all);
#pragma unroll
        for (int j = 0; j < QUAD; ++j) {
            if (at + j < size) counts[at + j] = before;
            before += own[j];
        }
        sum += all;
    }
    return sum;
}

// --- filter: the positions of the bits that are set, the first `limit` of them ----------------------------
COMPLL_DEVICE uint32_t word_of(const uint8_t* bits, int64_t tile, int thread, int64_t length) {
    const int64_t rest = length - tile * TILE - WARP * thread;
    if (rest <= 0) return 0;
    const uint32_t word = reinterpret_cast<const uint32_t*>(bits)[tile * WARP + thread];
    return rest >= WARP ? word : word & ((1u << rest) - 1);
}
COMPLL_DEVICE void count_bits(const Part& part, const uint8_t* bits, int64_t length, int64_t* first) {
    const int thread = threadIdx.x % WARP;
    for (int64_t tile = part.warp; tile < tiles_of(length); tile += part.warps) {
        const int count = warp_sum(__popc(word_of(bits, tile, thread, length)));
        if (thread == 0) first[tile] = count;
    }
}
COMPLL_DEVICE void count_first(int64_t* first, int64_t length, int64_t limit, int64_t& count) {
    const int64_t found = sums_before(first, tiles_of(length));
    if (threadIdx.x == 0) count = limit < 0 ? 0 : limit < found ? limit : found;
}
COMPLL_DEVICE void write_bits(const Part& part, const uint8_t* bits, int64_t length, const int64_t* first, int64_t count, int64_t* out) {
    const int thread = threadIdx.x % WARP;
    for (int64_t tile = part.warp; tile < tiles_of(length); tile += part.warps) {
        if (first[tile] >= count) continue;
        uint32_t word = word_of(bits, tile, thread, length);
        const int own = __popc(word);
        int64_t at = first[tile] + warp_sums(own, thread) - own;
        for (; word && at < count; word &= word - 1) out[at++] = tile * TILE + WARP * thread + __ffs(int(word)) - 1;
    }
}

// --- keys: integers whose order is that of the elements ---------------------------------------------------
template <class K> COMPLL_DEVICE Unsigned<K> unsigned_key(K key) {
    using U = Unsigned<K>;
    return is_signed<K> ? U(key) ^ (U(1) << (sizeof(U) * 8 - 1)) : U(key);
}
// What is known of the key of `rank` in ascending order: its upper digits, and how many keys have lower ones.
// A rank that no key has is -1.
struct Rank {
    uint64_t prefix;
    int64_t below, rank;
};
constexpr int BINS = 2048, DIGIT = 11, MOST_COUNTING = 2048;  // the bins of a digit's bits; blocks that count digits

COMPLL_DEVICE void begin_rank(Rank* at, uint64_t* bins, int64_t rank, int64_t length) {
    for (int b = threadIdx.x; b < BINS; b += ITEM_THREADS) bins[b] = 0;
    if (threadIdx.x == 0) *at = {0, 0, rank >= 0 && rank < length ? rank : -1};
}
// Count the next digit, of at most 11 bits, of the keys that have the upper digits; LEFT bits are unknown.
template <int LEFT, class K> COMPLL_DEVICE void count_digits(const Part& part, const K* keys, int64_t length, const Rank* at, uint64_t* bins) {
    constexpr int WHOLE = sizeof(K) * 8, SHIFT = LEFT > DIGIT ? LEFT - DIGIT : 0;
    constexpr int64_t WARPS = TILE_THREADS / WARP;
    COMPLL_SHARED(uint32_t, counts, BINS);
    const int64_t block = part.warp / WARPS, blocks = part.warps / WARPS < MOST_COUNTING ? part.warps / WARPS : MOST_COUNTING;
    if (at->rank < 0 || block >= blocks) return;
    for (int b = threadIdx.x; b < BINS; b += TILE_THREADS) counts[b] = 0;
    __syncthreads();
#pragma unroll 4
    for (int64_t i = block * TILE_THREADS + threadIdx.x; i < length; i += blocks * TILE_THREADS) {
        const Unsigned<K> key = unsigned_key(keys[i]);
        bool fits = true;
        if constexpr (LEFT < WHOLE) fits = key >> LEFT == at->prefix;
        if (fits) atomicAdd(&counts[(key >> SHIFT) & ((1u << (LEFT - SHIFT)) - 1)], 1u);
    }
    __syncthreads();
    for (int b = threadIdx.x; b < BINS; b += TILE_THREADS)
        if (counts[b]) atomicAdd(reinterpret_cast<unsigned long long*>(bins + b), static_cast<unsigned long long>(counts[b]));
    __syncthreads();  // before they are cleared for the next item
}
template <int LEFT> COMPLL_DEVICE void pick_digit(Rank* at, uint64_t* bins) {
    constexpr int PER = BINS / ITEM_THREADS, WIDTH = LEFT < DIGIT ? LEFT : DIGIT;
    const int first = threadIdx.x * PER;
    const int64_t rank = at->rank - at->below;
    int64_t own[PER], total = 0, all;
#pragma unroll
    for (int j = 0; j < PER; ++j) {
        total += own[j] = int64_t(bins[first + j]);
        bins[first + j] = 0;
    }
    int64_t before = block_sum_before(total, all);
#pragma unroll
    for (int j = 0; j < PER; ++j) {
        if (before <= rank && rank < before + own[j]) {  // of one bin, or of none
            at->prefix = at->prefix << WIDTH | uint64_t(first + j);
            at->below += before;
        }
        before += own[j];
    }
}
template <class K> COMPLL_DEVICE void count_ranked(const Part& part, const K* keys, int64_t length, const Rank* at, int64_t* below, int64_t* equal) {
    if (at->rank < 0) return;
    const Unsigned<K> last = Unsigned<K>(at->prefix);
    const int thread = threadIdx.x % WARP;
    for (int64_t tile = part.warp; tile < tiles_of(length); tile += part.warps) {
        uint32_t both = 0;  // below in the upper half: neither exceeds a tile
#pragma unroll 8
        for (int64_t i = tile * TILE + thread; i < length && i < (tile + 1) * TILE; i += WARP) {
            const Unsigned<K> key = unsigned_key(keys[i]);
            both += key < last ? 1u << 16 : key == last;
        }
        both = warp_sum(both);
        if (thread == 0) {
            below[tile] = both >> 16;
            equal[tile] = both & 0xffffu;
        }
    }
}
// The positions of the keys below `last`, and of equal ones from number `tie` on as long as it is below `ties`.
template <class K> COMPLL_DEVICE void write_selected(const K* keys, int64_t begin, int64_t end, Unsigned<K> last, int64_t tie, int64_t ties, int64_t* out) {
    const int thread = threadIdx.x % WARP;
    for (int64_t base = begin; base < end; base += WARP) {
        const int64_t i = base + thread;
        const Unsigned<K> key = i < end ? unsigned_key(keys[i]) : last;
        const bool same = i < end && key == last;
        const unsigned equal = __ballot_sync(ALL, same);
        const bool taken = same ? tie + __popc(equal & threads_before(thread)) < ties : key < last;
        const unsigned all = __ballot_sync(ALL, taken);
        if (taken) out[__popc(all & threads_before(thread))] = i;
        out += __popc(all);
        tie += __popc(equal);
    }
}
template <class K> COMPLL_DEVICE void write_least(const Part& part, const K* keys, int64_t length, const Rank* at, const int64_t* below, const int64_t* equal, int64_t* out) {
    if (at->rank < 0) return;
    const int64_t ties = at->rank + 1 - at->below;
    for (int64_t tile = part.warp; tile < tiles_of(length); tile += part.warps) {
        const int64_t begin = tile * TILE, end = begin + TILE < length ? begin + TILE : length;
        const int64_t to = below[tile] + (equal[tile] < ties ? equal[tile] : ties);
        write_selected(keys, begin, end, Unsigned<K>(at->prefix), equal[tile], ties, out + to);
    }
}
// The element whose key has the rank, of equal ones that of the right place; `equal` counts them in each tile.
template <class K, class V> COMPLL_DEVICE void find_ranked(const K* keys, const V* values, int64_t length, const Rank* at, int64_t* equal, V& found, int32_t* outside) {
    if (at->rank < 0) {
        if (threadIdx.x == 0) {
            found = V{};
            note(outside);
        }
        return;
    }
    COMPLL_SHARED(int64_t, where, 1);
    const int64_t tie = at->rank - at->below, tiles = tiles_of(length), all = sums_before(equal, tiles);
    __syncthreads();
    for (int64_t tile = threadIdx.x; tile < tiles; tile += ITEM_THREADS)
        if (equal[tile] <= tie && tie < (tile + 1 < tiles ? equal[tile + 1] : all)) where[0] = tile;
    __syncthreads();
    const int64_t tile = where[0];
    int64_t before = equal[tile], here;
    for (int64_t i = tile * TILE + threadIdx.x; i - threadIdx.x < (tile + 1) * TILE; i += ITEM_THREADS) {
        const bool same = i < length && unsigned_key(keys[i]) == Unsigned<K>(at->prefix);
        if (before + block_sum_before(same, here) == tie && same) found = values[i];
        before += here;
    }
}
// The k smallest keys of each block, by one warp: the key of rank k - 1 bit by bit, and what is not above it.
template <class K> COMPLL_DEVICE void select_blocks(const Part& part, const K* keys, int64_t length, int64_t k, int64_t block, int64_t* out) {
    using U = Unsigned<K>;
    const int thread = threadIdx.x % WARP;
    const int64_t each = k < 0 ? 0 : k < block ? k : block;
    for (int64_t b = part.warp; each > 0 && b < blocks_of(length, block); b += part.warps) {
        const int64_t begin = b * block, end = begin + block < length ? begin + block : length;
        const int64_t count = each < end - begin ? each : end - begin;
        U key = 0;
        const auto within = [&](U most) {
            int64_t sum = 0;
            for (int64_t i = begin + thread; i < end; i += WARP) sum += unsigned_key(keys[i]) <= most;
            return warp_sum(sum);
        };
        for (int bit = sizeof(U) * 8 - 1; bit >= 0; --bit)
            if (within(U(key | ((U(1) << bit) - 1))) < count) key |= U(1) << bit;
        const int64_t ties = key == 0 ? count : count - within(U(key - 1));
        write_selected(keys, begin, end, key, 0, ties, out + b * each);
    }
}

}  // namespace compll
