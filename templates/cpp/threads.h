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

}  // namespace compll
