// Tiles over threads, each computing by the same rules.
#pragma once

#include <cstdint>

namespace compll {

// Rounding to nearest and denormals kept, whatever the calling thread has set; restored at the end.
struct Arithmetic {
#if defined(__SSE__)
    unsigned saved = __builtin_ia32_stmxcsr();
    Arithmetic() { __builtin_ia32_ldmxcsr(0x1f80); }
    ~Arithmetic() { __builtin_ia32_ldmxcsr(saved); }
#endif
};
constexpr int64_t CHUNK = 64;
// Run `work(tile)` for every tile, SOME of them at a time; small vectors stay on the calling thread.
template <int64_t SOME = CHUNK, class F> inline void for_tiles(int64_t tiles, int threads, F work) {
    if (threads <= 1 || tiles <= SOME) {
        Arithmetic arithmetic;
        for (int64_t tile = 0; tile < tiles; ++tile) work(tile);
        return;
    }
#pragma omp parallel num_threads(threads)
    {
        Arithmetic arithmetic;
#pragma omp for schedule(dynamic, 1)
        for (int64_t some = 0; some < (tiles + SOME - 1) / SOME; ++some)
            for (int64_t tile = some * SOME; tile < tiles && tile < (some + 1) * SOME; ++tile) work(tile);
    }
}

}  // namespace compll
