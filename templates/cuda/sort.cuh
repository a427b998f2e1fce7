// Sorts by digits of 8 bits, the lowest first, each round stable: a warp takes a run of elements in order.
#pragma once

#include "selection.cuh"

namespace compll {

constexpr int DIGITS = 256, RUN = 4096;
COMPLL_BOTH int64_t runs_of(int64_t length) { return blocks_of(length, RUN); }

// Give every element of a run its place, `next` of its digit, which moves on.
template <class K, class F> COMPLL_DEVICE void place_run(const K* keys, int64_t begin, int64_t end, int shift, int64_t* next, F place) {
    const int thread = threadIdx.x % WARP;
    __syncwarp();
    for (int64_t base = begin; base < end; base += WARP) {
        const int64_t i = base + thread;
        const int digit = i < end ? int((unsigned_key(keys[i]) >> shift) & (DIGITS - 1)) : DIGITS;
        const unsigned equal = __match_any_sync(ALL, digit);
        const int before = __popc(equal & threads_before(thread));
        const int64_t to = i < end ? next[digit] + before : 0;
        __syncwarp();
        if (i < end && before == 0) next[digit] += __popc(equal);
        __syncwarp();
        if (i < end) place(i, to);
    }
}
struct Counted {
    COMPLL_DEVICE void operator()(int64_t, int64_t) const {}
};
template <class K, class V> struct Moved {
    const K* keys;
    const V* values;
    K* to_keys;
    V* to_values;
    COMPLL_DEVICE void operator()(int64_t i, int64_t to) const {
        to_keys[to] = keys[i];
        to_values[to] = values[i];
    }
};
template <class F> COMPLL_DEVICE void for_digits(F f) {
    for (int d = threadIdx.x % WARP; d < DIGITS; d += WARP) f(d);
}

// first[digit][run]: how many elements of the run have the digit, and then, how many those of the runs before.
// Behind it stands for each digit how many elements have it, and then, where the first of them goes.
template <class K> COMPLL_DEVICE void count_runs(const Part& part, const K* keys, int64_t length, int shift, int64_t* first) {
    COMPLL_SHARED(int64_t, counts, TILE_THREADS / WARP * DIGITS);
    int64_t* const own = counts + threadIdx.x / WARP * DIGITS;
    const int64_t runs = runs_of(length);
    for (int64_t run = part.warp; run < runs; run += part.warps) {
        for_digits([&](int d) { own[d] = 0; });
        place_run(keys, run * RUN, (run + 1) * RUN < length ? (run + 1) * RUN : length, shift, own, Counted{});
        for_digits([&](int d) { first[d * runs + run] = own[d]; });
        __syncwarp();
    }
}
COMPLL_DEVICE void sum_runs(const Part& part, int64_t length, int64_t* first) {
    const int thread = threadIdx.x % WARP;
    const int64_t runs = runs_of(length);
    for (int64_t d = part.warp; d < DIGITS; d += part.warps) {
        int64_t before = 0;
        for (int64_t base = 0; base < runs; base += WARP) {
            int64_t* const at = first + d * runs + base + thread;
            const bool there = base + thread < runs;
            const int64_t own = there ? *at : 0, sum = warp_sums(own, thread);
            if (there) *at = before + sum - own;
            before += __shfl_sync(ALL, sum, WARP - 1);
        }
        if (thread == 0) first[DIGITS * runs + d] = before;
    }
}
template <class K, class V> COMPLL_DEVICE void move_runs(const Part& part, const K* keys, const V* values, K* to_keys, V* to_values, int64_t length, int shift, const int64_t* first) {
    COMPLL_SHARED(int64_t, next, TILE_THREADS / WARP * DIGITS);
    int64_t* const own = next + threadIdx.x / WARP * DIGITS;
    const int64_t runs = runs_of(length);
    for (int64_t run = part.warp; run < runs; run += part.warps) {
        for_digits([&](int d) { own[d] = first[DIGITS * runs + d] + first[d * runs + run]; });
        const int64_t end = (run + 1) * RUN < length ? (run + 1) * RUN : length;
        place_run(keys, run * RUN, end, shift, own, Moved<K, V>{keys, values, to_keys, to_values});
        __syncwarp();
    }
}
// Sort inside each block, one warp a block; an even number of rounds, so that it ends in place.
template <class K, class V> COMPLL_DEVICE void arrange_blocks(const Part& part, K* keys, V* values, K* spare_keys, V* spare, int64_t length, int64_t block) {
    COMPLL_SHARED(int64_t, next, TILE_THREADS / WARP * DIGITS);
    constexpr int PER = DIGITS / WARP;
    int64_t* const own = next + threadIdx.x / WARP * DIGITS;
    const int thread = threadIdx.x % WARP;
    for (int64_t b = part.warp; b < blocks_of(length, block); b += part.warps) {
        const int64_t begin = b * block, end = begin + block < length ? begin + block : length;
        Moved<K, V> moved{keys, values, spare_keys, spare};
        for (int shift = 0; shift < int(sizeof(K)) * 8; shift += 8) {
            for_digits([&](int d) { own[d] = 0; });
            place_run(moved.keys, begin, end, shift, own, Counted{});
            int64_t sum = 0;
            for (int j = 0; j < PER; ++j) sum += own[PER * thread + j];
            int64_t before = begin + warp_sums(sum, thread) - sum;
            for (int j = 0; j < PER; ++j) {
                const int64_t count = own[PER * thread + j];
                own[PER * thread + j] = before;
                before += count;
            }
            place_run(moved.keys, begin, end, shift, own, moved);
            __syncwarp();
            moved = shift / 8 % 2 ? Moved<K, V>{keys, values, spare_keys, spare} : Moved<K, V>{spare_keys, spare, keys, values};
        }
    }
}

}  // namespace compll
