// Batches: which items all threads work on together, and which ones are spread over the threads.
#pragma once

#include <omp.h>

#include "compll.h"

namespace compll {

// An item with more than a quarter of a thread's share of all tiles is worked on by all threads, tile by tile, one
// item after the other.  The smaller ones are given to the threads whole: then no thread waits for another within
// an item, and the last one to end is late by a quarter of its share at most.
struct Shares {
    static constexpr int64_t LEAST = 64;  // tiles that are worth to be divided
    int64_t most_apart = -1;              // tiles of the largest item that one thread has for itself

    static int64_t tiles(const compll_item& item) { return item.n > 0 ? (item.n + TILE - 1) / TILE : 0; }
    Shares(const compll_item* items, int64_t count, int threads) {
        if (threads <= 1) return;
        int64_t all = 0, apart = 0;
        for (int64_t i = 0; i < count; ++i) all += tiles(items[i]);
        const int64_t most = all / (4 * int64_t(threads));
        for (int64_t i = 0; i < count; ++i) apart += tiles(items[i]) <= most ? tiles(items[i]) : 0;
        if (apart > LEAST) most_apart = most;
    }
    bool apart(const compll_item& item) const { return tiles(item) <= most_apart; }
};

// The scratch that an item of n elements needs, and an operation on one item.
using Need = int64_t (*)(int64_t n, const void* params);
using Run = int32_t (*)(compll_item& item, const void* params, char* scratch, int32_t threads);

// The scratch of a batch: one for the items that all threads work on, or one for each thread.
[[gnu::noinline]] inline int64_t batch_scratch(const compll_item* items, int64_t count, const void* params, int threads, Need need, int64_t* each = nullptr) {
    const Shares shares(items, count, threads);
    int64_t one = 0, together = 0;
    for (int64_t i = 0; i < count; ++i) {
        int64_t& most = shares.apart(items[i]) ? one : together;
        most = greater(most, align(need(items[i].n, params), 64));
    }
    if (each) *each = one;
    return greater(together, one * threads);
}

// Run every item; return the worst status.
[[gnu::noinline]] inline int32_t run_batch(compll_item* items, int64_t count, const void* params, char* scratch, int threads, Need need, Run run) {
    const Shares shares(items, count, threads);
    for (int64_t i = 0; i < count; ++i)
        if (!shares.apart(items[i])) items[i].status = run(items[i], params, scratch, threads);
    if (shares.most_apart >= 0) {
        int64_t each = 0;
        batch_scratch(items, count, params, threads, need, &each);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
        for (int64_t i = 0; i < count; ++i)
            if (shares.apart(items[i])) items[i].status = run(items[i], params, scratch + omp_get_thread_num() * each, 1);
    }
    int32_t worst = OK;
    for (int64_t i = 0; i < count; ++i) worst = items[i].status < worst ? items[i].status : worst;
    return worst;
}

}  // namespace compll
