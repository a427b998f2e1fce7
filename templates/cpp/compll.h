// The runtime of generated C++.
//
// A tile is 1024 elements = 8 rows x 128 lanes.  A kernel works on 16 lanes at a time, in vector types, never
// by hoping that a loop is vectorised.  There is no fast-math and no FMA: payloads are equal bit for bit.
#pragma once

#include "lanes.h"
#include "elementary.h"
#include "memory.h"
#include "random.h"
#include "reduce.h"

namespace compll {

inline Mask not_finite(Float x) { return mask((Int32)(bits_of(x) & 0x7f800000u) == 0x7f800000); }
inline bool any(Mask m) {
    int32_t some = 0;
    for (int j = 0; j < WIDTH; ++j) some |= m[j];
    return some != 0;
}
inline int64_t align(int64_t at, int64_t to) { return (at + to - 1) / to * to; }

// Rounding to nearest and denormals kept, whatever the calling thread has set; restored at the end.
struct Arithmetic {
#if defined(__SSE__)
    unsigned saved = __builtin_ia32_stmxcsr();
    Arithmetic() { __builtin_ia32_ldmxcsr(0x1f80); }
    ~Arithmetic() { __builtin_ia32_ldmxcsr(saved); }
#endif
};
// Run `work(tile)` for every tile, CHUNK of them at a time; small vectors stay on the calling thread.
template <int64_t CHUNK = 64, class F> inline void for_tiles(int64_t tiles, int threads, F work) {
    if (threads <= 1 || tiles <= CHUNK) {
        Arithmetic arithmetic;
        for (int64_t tile = 0; tile < tiles; ++tile) work(tile);
        return;
    }
#pragma omp parallel num_threads(threads)
    {
        Arithmetic arithmetic;
#pragma omp for schedule(dynamic, 1)
        for (int64_t chunk = 0; chunk < (tiles + CHUNK - 1) / CHUNK; ++chunk)
            for (int64_t tile = chunk * CHUNK; tile < tiles && tile < (chunk + 1) * CHUNK; ++tile) work(tile);
    }
}

enum Status : int32_t { OK = 0, NOT_FINITE = 1, OUT_OF_RANGE = -1, REFUSED = -2, BAD_BUFFER = -3 };

}  // namespace compll

// The C ABI: a call takes a table of items, so that a single call is a batch of one.
extern "C" struct compll_item {
    float* gradient;        // encode, hop: input; decode, decode_add: output
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
