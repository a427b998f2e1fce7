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
// Give the numbers below `count` to the threads, `some` of them at a time; few ones stay on the calling thread.
// It is compiled once for all loops, and each loop's body once for any number of threads.
[[gnu::noinline]] inline void share(int64_t count, int64_t some, int threads, void (*work)(void*, int64_t, int64_t), void* with) {
    if (threads <= 1 || count <= some) {
        Arithmetic arithmetic;
        return work(with, 0, count);
    }
#pragma omp parallel num_threads(threads)
    {
        Arithmetic arithmetic;
#pragma omp for schedule(dynamic, 1)
        for (int64_t k = 0; k < (count + some - 1) / some; ++k) work(with, k * some, (k + 1) * some < count ? (k + 1) * some : count);
    }
}
// Run `work(tile)` for every tile.
template <int64_t SOME = CHUNK, class F> inline void for_tiles(int64_t tiles, int threads, F work) {
    share(tiles, SOME, threads, [](void* with, int64_t tile, int64_t end) {
        for (; tile < end; ++tile) (*static_cast<F*>(with))(tile);
    }, &work);
}

}  // namespace compll
