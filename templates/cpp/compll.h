// The runtime of generated C++.
//
// A tile is 1024 elements = 8 rows x 128 lanes.  A kernel works on 16 lanes at a time, in vector types, never
// by hoping that a loop is vectorised.  There is no fast-math and no FMA: payloads are equal bit for bit.
#pragma once

#include "lanes.h"
#include "elementary.h"
#include "memory.h"
#include "positions.h"
#include "random.h"
#include "reduce.h"
#include "selection.h"
#include "threads.h"

namespace compll {

inline UInt32 magnitude(Float x) { return bits_of(x) & 0x7fffffffu; }  // greater ones are of greater floats
inline Mask not_finite(UInt32 magnitude) { return ge(magnitude, splat<UInt32>(0x7f800000u)); }
inline int64_t align(int64_t at, int64_t to) { return (at + to - 1) / to * to; }

// Do `body(row, block)` for each vector of a tile of `count` elements.  In a row that is unrolled, partial results of
// its vectors stay in registers and the places of its codes are constants; beyond that unrolling takes longer to
// compile than it saves, most of all in a last tile, which runs once.
template <bool FULL, bool WHOLE_ROWS, class F>
__attribute__((always_inline)) inline void each_block([[maybe_unused]] int count, F body) {
    if constexpr (FULL && WHOLE_ROWS) {
        for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 8
            for (int block = 0; block < BLOCKS; ++block) body(row, block);
    } else if constexpr (FULL) {
        for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
            for (int block = 0; block < BLOCKS; ++block) body(row, block);
    } else {
        for (int row = 0; row < ROWS; ++row)
            for (int block = 0; block < BLOCKS && row * LANES + block * WIDTH < count; ++block) body(row, block);
    }
}

// Memory of the caller, given out piece by piece; without any, it counts what would be given.
struct Arena {
    char* base;
    int64_t used = 0;
    template <class T> T* take(int64_t count) {
        T* const place = base ? reinterpret_cast<T*>(base + used) : nullptr;
        used += align((count > 0 ? count : 0) * int64_t(sizeof(T)), 64);
        return place;
    }
};

// A payload begins with its counts: of 4 bytes each, from 2^32 elements on of 8.
inline int64_t count_bytes(int64_t n) { return n < int64_t(1) << 32 ? 4 : 8; }
inline void put_count(uint8_t* payload, int at, int64_t n, int64_t count) {
    std::memcpy(payload + at * count_bytes(n), &count, count_bytes(n));
}
inline int64_t get_count(const uint8_t* payload, int at, int64_t n) {
    int64_t count = 0;
    std::memcpy(&count, payload + at * count_bytes(n), count_bytes(n));
    return count;
}
enum Status : int32_t { OK = 0, NOT_FINITE = 1, OUT_OF_RANGE = -1, REFUSED = -2, BAD_BUFFER = -3 };

}  // namespace compll

// The C ABI: a call takes a table of items, so that a single call is a batch of one.
extern "C" struct compll_item {
    void* gradient;         // encode, hop: input; decode, decode_add: output; float, half or bfloat16 by the symbol
    uint8_t* payload;       // encode, hop: output of `capacity` bytes; otherwise input of `length` bytes
    int64_t n;              // elements of the gradient
    int64_t capacity;
    int64_t length;         // encode, hop: set to the payload's true length
    const float* const* state;   // one pointer a state vector, in the order of the program
    float* const* new_state;     // may be the same
    uint64_t seed, shared_seed;
    float scale;            // decode_add, hop
    int32_t status;         // 0, 1: the input was not finite, or negative: an error
    const uint8_t* source;  // hop: the payload that is decoded, `source_length` bytes; no part of `payload`
    int64_t source_length;
};
#define COMPLL_EXPORT extern "C" __attribute__((visibility("default")))
