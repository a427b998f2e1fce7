// The runtime of generated CUDA C++.
//
// A tile is 1024 elements = 8 rows x 128 lanes, and one warp's work.  A codec's operation is a list of launches
// in the order of one stream, all with the same arguments: kernels over items (a block each; they fold the
// reductions of the pass before and work out scalars) and kernels over tiles (one pass over memory each).
// Scalars stay in the item's frame, at the start of its scratch; nothing is allocated and nothing waits for the
// host.  Compile with --fmad=false and without fast-math: payloads are equal bit for bit on every backend.
#pragma once

#include "random.cuh"
#include "reduce.cuh"
#include "selection.cuh"
#include "sort.cuh"

// The C ABI: a call takes a table of items in device memory, so that a single call is a batch of one.  The
// pointers in it, `state` and `new_state` included, are device pointers too.
extern "C" struct compll_item {
    void* gradient;         // encode, hop: input; decode, decode_add: output; float, half or bfloat16 by the symbol
    uint8_t* payload;       // a multiple of 16; encode, hop: output of `capacity` bytes; otherwise input of `length`
    int64_t n;              // elements of the gradient
    int64_t capacity;
    int64_t length;         // encode, hop: set to the payload's true length; decode: -1 if it ends within `capacity`
    const float* const* state;   // one pointer a state vector, in the order of the program
    float* const* new_state;     // may be the same
    uint64_t seed, shared_seed;
    char* scratch;          // a multiple of 64; `scratch_bytes(n)` bytes of its own
    float scale;            // decode_add, hop
    int32_t status;         // 0, 1: the input was not finite, or negative: an error
    const uint8_t* source;  // hop: the payload that is decoded, `source_length` bytes from a multiple of 16
    int64_t source_length;
    int64_t first_block;    // of a launch over tiles: the `item_blocks(n)` of all items before
};

namespace compll {

COMPLL_BOTH int64_t align(int64_t at, int64_t to) { return (at + to - 1) / to * to; }
template <class T, class V> COMPLL_DEVICE void put(uint8_t* to, V x) {
    *reinterpret_cast<T*>(to) = static_cast<T>(canonical(x));
}
template <class T> COMPLL_DEVICE T get(const uint8_t* from) { return *reinterpret_cast<const T*>(from); }
COMPLL_DEVICE void clear(uint8_t* from, uint8_t* to) {
    while (from < to) *from++ = 0;
}

// Memory of the caller, given out piece by piece; without any, it counts what would be given.
struct Arena {
    char* base;
    int64_t used = 0;
    template <class T> COMPLL_BOTH T* take(int64_t count) {
        T* const place = base ? reinterpret_cast<T*>(base + used) : nullptr;
        used += align((count > 0 ? count : 0) * int64_t(sizeof(T)), 64);
        return place;
    }
};

// A payload begins with its counts: of 4 bytes each, from 2^32 elements on of 8.
COMPLL_BOTH int64_t count_bytes(int64_t n) { return n < int64_t(1) << 32 ? 4 : 8; }
COMPLL_DEVICE void put_count(uint8_t* payload, int at, int64_t n, int64_t count) {
    if (count_bytes(n) == 4) reinterpret_cast<uint32_t*>(payload)[at] = uint32_t(count);
    else reinterpret_cast<int64_t*>(payload)[at] = count;
}
COMPLL_DEVICE int64_t get_count(const uint8_t* payload, int at, int64_t n) {
    return count_bytes(n) == 4 ? reinterpret_cast<const uint32_t*>(payload)[at] : reinterpret_cast<const int64_t*>(payload)[at];
}

// Whether an item is still worked on.  Its status becomes an error once and for all: by one thread between the
// meetings of a block, or in a launch over tiles, where a warp therefore has one opinion, and the next launch another.
COMPLL_DEVICE bool going(const compll_item& item) {
    __syncthreads();
    const bool is = item.status >= 0;
    __syncthreads();
    return is;
}
COMPLL_DEVICE bool stopped(const compll_item& item) { return __shfl_sync(ALL, int(item.status < 0), 0) != 0; }

// The rule of every launch: over items a block each; over tiles a warp each, and the blocks of all items side by
// side, at least one an item.  Kernels stride, so that an item may have any number of blocks.
constexpr int64_t MOST_X = 1 << 20;
struct Grid { unsigned x, threads; };
COMPLL_BOTH int64_t within(int64_t x, int64_t most) { return x < 1 ? 1 : x < most ? x : most; }
COMPLL_BOTH int64_t item_blocks(int64_t n) { return within(blocks_of(tiles_of(n), TILE_THREADS / WARP), MOST_X); }
COMPLL_BOTH Grid over_items(int64_t count) { return {unsigned(within(count, MOST_X)), ITEM_THREADS}; }
COMPLL_BOTH Grid over_tiles(int64_t blocks) { return {unsigned(blocks), TILE_THREADS}; }

// The item that a block of a launch over tiles works on, and this warp among those that do.
COMPLL_DEVICE Part part_of(const compll_item* items, int64_t count) {
    int64_t low = 0, high = count;
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        (items[middle].first_block <= int64_t(blockIdx.x) ? low : high) = middle;
    }
    constexpr int64_t warps = TILE_THREADS / WARP;
    const int64_t first = items[low].first_block, end = high < count ? items[high].first_block : int64_t(gridDim.x);
    return {low, (int64_t(blockIdx.x) - first) * warps + threadIdx.x / WARP, (end - first) * warps};
}

// A piece of the table of items, as the parameter of a launch: those take at most 4 KiB.
constexpr int PIECE_WORDS = 480;
struct Piece {
    uint64_t words[PIECE_WORDS];
};
COMPLL_DEVICE void write_piece(const Piece& piece, uint64_t* to, int64_t words) {
    for (int64_t i = threadIdx.x; i < words; i += ITEM_THREADS) to[i] = piece.words[i];
}

}  // namespace compll

#if defined(__CUDACC_RTC__)
// Launched by the caller of NVRTC; there is no host code.
#elif defined(__CUDACC__)
#define COMPLL_EXPORT extern "C" __attribute__((visibility("default")))
#define COMPLL_LAUNCH(KERNEL, GRID, ...) \
    do { const compll::Grid g = GRID; KERNEL<<<g.x, g.threads, 0, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__); } while (0)
#define COMPLL_LAUNCHED (cudaGetLastError() == cudaSuccess)
#else
#define COMPLL_EXPORT extern "C" __attribute__((visibility("default")))
#define COMPLL_LAUNCH(KERNEL, GRID, ...) \
    do { const compll::Grid g = GRID; if (compll_sim_launch(KERNEL, g.x, g.threads, 0, __VA_ARGS__)) return NO_LAUNCH; } while (0)
#define COMPLL_LAUNCHED true

// Run one kernel; return what is wrong with it, or null.
COMPLL_EXPORT const char* compll_sim_launch(void (*kernel)(compll_item*, int64_t, const void*), unsigned x, unsigned threads,
                                            int order, compll_item* items, int64_t count, const void* params) {
    return compll::sim::launch({x, 1, 1}, int(threads), order, [=] { kernel(items, count, params); });
}
COMPLL_EXPORT const char* compll_sim_write(void (*kernel)(const compll::Piece, uint64_t*, int64_t), const compll::Piece* piece, uint64_t* to, int64_t words) {
    return compll::sim::launch({1, 1, 1}, compll::ITEM_THREADS, 0, [=] { kernel(*piece, to, words); });
}
#endif
