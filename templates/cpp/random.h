// Random numbers: Philox4x32-10 (Salmon et al., SC'11), keyed by the seed, counted by element and call.
#pragma once

#include "lanes.h"

namespace compll {

inline void multiply(uint32_t a, uint32_t m, uint32_t& high, uint32_t& low) {
    const uint64_t p = uint64_t(a) * m;
    high = uint32_t(p >> 32);
    low = uint32_t(p);
}
inline void philox(uint32_t (&c)[4], uint64_t seed) {
    uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        uint32_t h0, l0, h1, l1;
        multiply(c[0], 0xD2511F53u, h0, l0);
        multiply(c[2], 0xCD9E8D57u, h1, l1);
        c[0] = h1 ^ c[1] ^ k0;
        c[2] = h0 ^ c[3] ^ k1;
        c[1] = l1;
        c[3] = l0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}
// Of lanes, the even and the odd ones stand in 64 bits each, of which the lower half counts: a product is then
// one instruction, and nothing is moved between lanes until the end.  What one register holds goes through all rounds.
template <class U> inline void philox(U (&c)[4], uint64_t seed) {
    if constexpr (IS_HALVES<U>) {
        Half<U> a[4] = {c[0].low, c[1].low, c[2].low, c[3].low}, b[4] = {c[0].high, c[1].high, c[2].high, c[3].high};
        philox(a, seed);
        philox(b, seed);
#pragma GCC unroll 4
        for (int w = 0; w < 4; ++w) c[w] = {a[w], b[w]};
    } else {
        Words half[2][4];
#pragma GCC unroll 4
        for (int w = 0; w < 4; ++w) half[0][w] = (Words)c[w], half[1][w] = (Words)c[w] >> 32;
        uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
#pragma GCC unroll 10
        for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 2
            for (int which = 0; which < 2; ++which) {
                Words(&x)[4] = half[which];
                const Words p0 = register_product(x[0], Words{} + 0xD2511F53u), p1 = register_product(x[2], Words{} + 0xCD9E8D57u);
                x[0] = (p1 >> 32) ^ x[1] ^ (Words{} + k0);
                x[2] = (p0 >> 32) ^ x[3] ^ (Words{} + k1);
                x[1] = p1;
                x[3] = p0;
            }
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
#pragma GCC unroll 4
        for (int w = 0; w < 4; ++w) c[w] = (U)((half[0][w] & 0xffffffffull) | (half[1][w] << 32));
    }
}
// The 128-lane group of a tile has p = tile*128 + lane; 16 lanes begin at `lane`.
template <class U> inline void counter(U (&c)[4], int64_t tile, int lane, uint32_t site, uint32_t part) {
    const int64_t p = tile * LANES + lane;  // 16 lanes never cross a multiple of 2^32
    c[0] = splat<U>(uint32_t(p));
    if constexpr (!std::is_arithmetic_v<U>) c[0] += numbers<U>();
    c[1] = splat<U>(uint32_t(uint64_t(p) >> 32));
    c[2] = splat<U>(site);
    c[3] = splat<U>(part);
}
inline void random_words(UInt32 (&rows)[ROWS], uint64_t seed, uint32_t site, int64_t tile, int lane) {
#pragma GCC unroll 2
    for (uint32_t part = 0; part < 2; ++part) {
        UInt32 c[4];
        counter(c, tile, lane, site, part);
        philox(c, seed);
#pragma GCC unroll 4
        for (int w = 0; w < 4; ++w) rows[4 * part + w] = c[w];
    }
}
inline void random_halves(UInt32 (&rows)[ROWS], uint64_t seed, uint32_t site, int64_t tile, int lane) {
    UInt32 c[4];
    counter(c, tile, lane, site, 0);
    philox(c, seed);
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; ++row) rows[row] = (c[row / 2] >> (16 * (row % 2))) & 0xffffu;
}
inline uint32_t random_word(uint64_t seed, uint32_t site) {  // of element 0
    uint32_t c[4];
    counter(c, 0, 0, site, 0);
    philox(c, seed);
    return c[0];
}
inline uint32_t random_half(uint64_t seed, uint32_t site) { return random_word(seed, site) & 0xffffu; }
inline float as_float(uint32_t w) { return float(w); }
inline Float as_float(UInt32 w) { return converted<Float>((Int32)w); }  // below 2^31
template <class T, class U> inline T random_float(U word, T low, T high) {
    return low + (high - low) * (as_float(U(word >> 8)) * splat<T>(0x1p-24f));
}
inline int64_t random_int_one(uint32_t w, int64_t low, int64_t high) {
    const int64_t span = int64_t(uint64_t(high) - uint64_t(low));
    return low + (int64_t(w) * (span >> 32) + int64_t((uint64_t(w) * uint64_t(span & 0xffffffffll)) >> 32));
}
inline int64_t random_int(uint32_t w, int64_t low, int64_t high) { return random_int_one(w, low, high); }
inline Int64 random_int(UInt32 w, Int64 low, Int64 high) {
    return each<Int64>([&](int j) { return random_int_one(w[j], low[j], high[j]); });
}
template <class T, class U> inline T stochastic_round(U half, T x) {
    const T whole = floor_(x), u = (as_float(half) + splat<T>(0.5f)) * splat<T>(0x1p-16f);
    return whole + select(gt(T(x - whole), u), splat<T>(1.0f), splat<T>(0.0f));
}

}  // namespace compll
