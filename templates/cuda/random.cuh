// Random numbers: Philox4x32-10 (Salmon et al., SC'11), keyed by the seed, counted by element and call.
#pragma once

#include "scalar.cuh"

namespace compll {

COMPLL_BOTH void philox(uint32_t (&c)[4], uint64_t seed) {
    uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const uint64_t p0 = uint64_t(c[0]) * 0xD2511F53u, p1 = uint64_t(c[2]) * 0xCD9E8D57u;
        c[0] = uint32_t(p1 >> 32) ^ c[1] ^ k0;
        c[2] = uint32_t(p0 >> 32) ^ c[3] ^ k1;
        c[1] = uint32_t(p1);
        c[3] = uint32_t(p0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}
// Four words for one lane of a tile: p = tile * 128 + lane.
COMPLL_BOTH void draw(uint32_t (&c)[4], uint64_t seed, uint32_t site, int64_t tile, int lane, uint32_t part) {
    const int64_t p = tile * LANES + lane;
    c[0] = uint32_t(p);
    c[1] = uint32_t(uint64_t(p) >> 32);
    c[2] = site;
    c[3] = part;
    philox(c, seed);
}
// x[i], in registers also where i is known only when the kernel runs.
COMPLL_BOTH uint32_t one_of(const uint32_t (&x)[4], int i) { return i & 2 ? i & 1 ? x[3] : x[2] : i & 1 ? x[1] : x[0]; }
struct Words {  // one 32-bit word a row
    uint32_t low[4], high[4];
    __host__ __device__ __forceinline__ void fill(uint64_t seed, uint32_t site, int64_t tile, int lane) {
        draw(low, seed, site, tile, lane, 0);
        draw(high, seed, site, tile, lane, 1);
    }
    __host__ __device__ __forceinline__ uint32_t operator[](int row) const { return row < 4 ? one_of(low, row) : one_of(high, row - 4); }
};
struct Halves {  // one 16-bit half a row
    uint32_t words[4];
    __host__ __device__ __forceinline__ void fill(uint64_t seed, uint32_t site, int64_t tile, int lane) {
        draw(words, seed, site, tile, lane, 0);
    }
    __host__ __device__ __forceinline__ uint32_t operator[](int row) const { return (one_of(words, row / 2) >> (16 * (row % 2))) & 0xffffu; }
};
COMPLL_BOTH uint32_t random_word(uint64_t seed, uint32_t site) {  // of element 0
    Words w;
    w.fill(seed, site, 0, 0);
    return w[0];
}
COMPLL_BOTH uint32_t random_half(uint64_t seed, uint32_t site) { return random_word(seed, site) & 0xffffu; }

template <class T> COMPLL_BOTH T random_float(uint32_t word, T low, T high) {
    return low + (high - low) * (float(word >> 8) * 0x1p-24f);
}
COMPLL_BOTH int64_t random_int(uint32_t w, int64_t low, int64_t high) {
    const int64_t span = wrap_subtract(high, low);
    const int64_t carry = int64_t((uint64_t(w) * uint64_t(span & INT64_C(0xffffffff))) >> 32);
    return wrap_add(low, wrap_add(wrap_multiply(int64_t(w), span >> 32), carry));
}
COMPLL_BOTH float stochastic_round(uint32_t half, float x) {
    const float whole = floor_(x), u = (float(half) + 0.5f) * 0x1p-16f;
    return whole + (x - whole > u ? 1.0f : 0.0f);
}

}  // namespace compll
