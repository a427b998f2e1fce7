// Conversions, loads and stores of lanes, and the packing of sub-byte fields.
#pragma once

#include "lanes.h"
#include "half.h"

namespace compll {

// --- conversions: truncate toward zero, saturate, NaN gives 0 ------------------------------------------
template <class To, class From> inline To saturate_one(From x, To low, To high) {
    if constexpr (std::is_floating_point_v<From>) {
        if (!(x == x)) return 0;
        const double y = x;
        return y <= double(low) ? low : y >= double(high) ? high : To(y);
    } else if constexpr (std::is_signed_v<From>) {
        if (x < 0) return std::is_signed_v<To> ? (int64_t(x) < int64_t(low) ? low : To(x)) : To(0);
        return uint64_t(x) > uint64_t(high) ? high : To(x);
    } else {
        return uint64_t(x) > uint64_t(high) ? high : To(x);
    }
}
template <class V> inline V clamp(V x, Element<V> low, Element<V> high) {
    return under(splat<V>(high), over(splat<V>(low), x));
}
template <class To> inline To saturate_floats(Float x, Element<To> low, Element<To> high) {
    if constexpr (std::is_same_v<To, Int32>) {
        if (low == 0 && high <= 1 << 24)  // both bounds are floats: clamp there; `over` makes 0 of a NaN
            return __builtin_convertvector(under(over(x, Float{}), splat<Float>(high)), Int32);
        if (low >= -(1 << 24) && high <= 1 << 24) {
#if defined(__AVX512F__)
            const uint16_t numbers = __builtin_ia32_cmpps512_mask(x, x, 7, -1, 4);  // none is NaN: others become 0
            const Float bounded = __builtin_ia32_minps512_mask(over(x, splat<Float>(low)), splat<Float>(high), Float{}, numbers, 4);
            return __builtin_convertvector(bounded, Int32);
#else
            return __builtin_convertvector(clamp(select(ne(x, x), Float{}, x), float(low), float(high)), Int32);
#endif
        }
    }
    const Float bound = splat<Float>(0x1p31f);
    if (!any(negation(lt(absolute(x), bound)))) {  // as a rule 32 bits hold them all
        const Int32 whole = __builtin_convertvector(x, Int32);
        if constexpr (std::is_same_v<To, Int32>) return clamp(whole, low, high);
        else if constexpr (std::is_signed_v<Element<To>>) return clamp(__builtin_convertvector(whole, To), low, high);
        else return clamp(__builtin_convertvector(select(lt(whole, Int32{}), Int32{}, whole), To), low, high);
    }
    return each<To>([&](int j) { return saturate_one<Element<To>>(x[j], low, high); });
}
template <class To, class From> inline To saturate(From x, Element<To> low, Element<To> high) {
    using F = Element<From>;
    if constexpr (std::is_same_v<From, Float>) return saturate_floats<To>(x, low, high);
    else {
        constexpr F least = std::is_signed_v<F> ? std::numeric_limits<F>::min() : 0, most = std::numeric_limits<F>::max();
        F l = least, h = most;  // those of the bounds that these integers can pass
        if constexpr (std::is_signed_v<F>) {
            if (std::is_unsigned_v<Element<To>>) l = 0;
            else if (int64_t(low) > int64_t(least)) l = F(low);
        } else if (low > 0) l = uint64_t(low) > uint64_t(most) ? most : F(low);
        if (high < 0) h = F(high);
        else if (uint64_t(high) < uint64_t(most)) h = F(high);
        const From y = clamp(x, l, h);
        if constexpr (std::is_same_v<To, From>) return y;
        else return __builtin_convertvector(y, To);
    }
}
template <class To, class From> inline To widen(From x) {  // between integers that hold the value; to float
    if constexpr (std::is_arithmetic_v<To>) return static_cast<To>(x);
    else if constexpr (std::is_same_v<To, From>) return x;
    else return __builtin_convertvector(x, To);
}

// --- memory --------------------------------------------------------------------------------------------
template <class T, int BYTES> struct Loose { using type __attribute__((vector_size(BYTES), aligned(1), may_alias)) = T; };
inline Mask first_lanes(int live) {
    return mask(Int32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} < live);
}
// Bytes to 32 bits in two steps: compilers widen a vector to twice its size well, and no further.
using Bytes = uint8_t __attribute__((vector_size(16)));
inline Int32 expand(Bytes x) {
#if defined(__AVX512F__)
    using Signed = char __attribute__((vector_size(16)));
    return (Int32)__builtin_ia32_pmovzxbd512_mask((Signed)x, (Int32){}, -1);
#else
    using Half = uint16_t __attribute__((vector_size(32)));
    return __builtin_convertvector(__builtin_convertvector(x, Half), Int32);
#endif
}
inline Int32 expand(const uint8_t* p) { return expand((Bytes) * (const Loose<uint8_t, 16>::type*)p); }
inline Int32 expand(const int8_t* p) {
    using Half = int16_t __attribute__((vector_size(32)));
    return __builtin_convertvector(__builtin_convertvector(*(const Loose<int8_t, 16>::type*)p, Half), Int32);
}
// Load 16 elements of storage type T as lanes V; of a ragged end only `live`, the others are 0.
template <class V, bool FULL, class T> inline V load(const T* p, int live) {
    using Raw = typename Loose<T, sizeof(T) * WIDTH>::type;
    T buffer[WIDTH] = {};
    if constexpr (!FULL) {
        for (int j = 0; j < WIDTH; ++j) buffer[j] = j < live ? p[j] : T(0);
        p = buffer;
    }
    if constexpr (std::is_same_v<Element<V>, T>) return (V) * (const Raw*)p;
    else if constexpr (sizeof(T) == 1) return expand(p);
    else return __builtin_convertvector(*(const Raw*)p, V);
}
template <bool FULL, class T, class V> inline void store(T* p, V x, int live) {
    using Raw = typename Loose<T, sizeof(T) * WIDTH>::type;
    if constexpr (FULL) {
        if constexpr (std::is_same_v<Element<V>, T>) *(Raw*)p = (Raw)x;
        else *(Raw*)p = __builtin_convertvector(x, Raw);
    } else {
        for (int j = 0; j < WIDTH; ++j)
            if (j < live) p[j] = T(x[j]);
    }
}
// 16 codes of a half or bfloat16, and their values.  Instructions of x86 for half give what half.h gives.
using Codes = uint16_t __attribute__((vector_size(32)));
template <class H> inline Float widened(Codes x) { return H::template widened<Float>(__builtin_convertvector(x, UInt32)); }
template <class H> inline Codes rounded(Float x) { return __builtin_convertvector(H::rounded(x), Codes); }
#if defined(__AVX512F__)
using HalfCodes = short __attribute__((vector_size(32)));
template <> inline Float widened<half>(Codes x) { return __builtin_ia32_vcvtph2ps512_mask((HalfCodes)x, Float{}, -1, 4); }
template <> inline Codes rounded<half>(Float x) {
    return (Codes)__builtin_ia32_vcvtps2ph512_mask(canonical(x), 0, HalfCodes{}, -1);
}
#elif defined(__F16C__)
using HalfCodes = short __attribute__((vector_size(16)));
using HalfFloats = float __attribute__((vector_size(32)));
template <> inline Float widened<half>(Codes x) {
    HalfCodes c[2];
    std::memcpy(c, &x, sizeof x);
    const HalfFloats parts[2] = {__builtin_ia32_vcvtph2ps256(c[0]), __builtin_ia32_vcvtph2ps256(c[1])};
    Float out;
    std::memcpy(&out, parts, sizeof out);
    return out;
}
template <> inline Codes rounded<half>(Float x) {
    HalfFloats parts[2];
    std::memcpy(parts, &x, sizeof x);
    HalfCodes c[2];
    for (int k = 0; k < 2; ++k) {
        const auto nan = parts[k] != parts[k];
        c[k] = __builtin_ia32_vcvtps2ph256(nan ? __builtin_nanf("") - HalfFloats{} : parts[k], 0);
    }
    Codes out;
    std::memcpy(&out, c, sizeof out);
    return out;
}
#endif
template <class H> inline Float through(Float x) { return widened<H>(rounded<H>(x)); }
#define COMPLL_SHORT(H)                                                                                           \
    template <class V, bool FULL> inline V load(const H* p, int live) {                                           \
        return widened<H>(load<Codes, FULL>(&p->bits, live));                                                     \
    }                                                                                                             \
    template <bool FULL, class V> inline void store(H* p, V x, int live) { store<FULL>(&p->bits, rounded<H>(x), live); }
COMPLL_SHORT(half)
COMPLL_SHORT(bfloat16)
#undef COMPLL_SHORT

// --- sub-byte fields: element i has bits i*w .. i*w+w-1 of the little-endian bit string -------------------
constexpr uint64_t repeated(uint64_t bits, int every) {
    uint64_t out = 0;
    for (int at = 0; at < 64; at += every) out |= bits << at;
    return out;
}
template <int W> inline uint64_t squeeze(uint64_t x) {  // 8 bytes of W bits -> 8*W bits
#if defined(__BMI2__)
    return __builtin_ia32_pext_di(x, repeated((1ull << W) - 1, 8));
#else
    constexpr uint64_t one = repeated((1ull << W) - 1, 16), two = repeated((1ull << 2 * W) - 1, 32), four = (1ull << 4 * W) - 1;
    x = (x & one) | ((x >> (8 - W)) & (one << W));
    x = (x & two) | ((x >> (16 - 2 * W)) & (two << 2 * W));
    return (x & four) | ((x >> (32 - 4 * W)) & (four << 4 * W));
#endif
}
template <int W> inline uint64_t spread(uint64_t x) {  // the inverse
#if defined(__BMI2__)
    return __builtin_ia32_pdep_di(x, repeated((1ull << W) - 1, 8));
#else
    constexpr uint64_t one = repeated((1ull << W) - 1, 16), two = repeated((1ull << 2 * W) - 1, 32), four = (1ull << 4 * W) - 1;
    x = (x & four) | ((x << (32 - 4 * W)) & (four << 32));
    x = (x & two) | ((x << (16 - 2 * W)) & (two << 16));
    return (x & one) | ((x << (8 - W)) & (one << 8));
#endif
}
inline uint16_t mask_bits(Mask m) {  // one bit a lane
#if defined(__AVX512DQ__)
    return uint16_t(__builtin_ia32_cvtd2mask512(m));
#elif defined(__SSE2__)
    using Signs = char __attribute__((vector_size(16)));
    return uint16_t(__builtin_ia32_pmovmskb128(__builtin_convertvector(m, Signs)));
#else
    uint16_t bits = 0;
    for (int j = 0; j < WIDTH; ++j) bits |= (m[j] & 1) << j;
    return bits;
#endif
}
inline void put_bits(uint8_t* to, Mask m) {
    const uint16_t bits = mask_bits(m);
    std::memcpy(to, &bits, 2);
}
template <int W> inline void put_codes(uint8_t* to, Int32 codes) {  // 16 of them, in 2 * W bytes
#if defined(__AVX512F__)
    if constexpr (W <= 4) {  // two codes side by side in a byte of each 64 bits
        using Words = long long __attribute__((vector_size(64)));
        using Bytes = char __attribute__((vector_size(16)));
        const Words pairs = (Words)codes | (Words)codes >> (32 - W);
        const Bytes bytes = __builtin_ia32_pmovqb512_mask(pairs, Bytes{}, -1);
        uint64_t x;
        std::memcpy(&x, &bytes, 8);
        if constexpr (W < 4) x = squeeze<2 * W>(x);
        std::memcpy(to, &x, 2 * W);
        return;
    }
#endif
    uint8_t bytes[WIDTH];
    store<true>(bytes, codes, WIDTH);
    for (int g = 0; g < 2; ++g) {
        uint64_t x;
        std::memcpy(&x, bytes + 8 * g, 8);
        x = squeeze<W>(x);
        std::memcpy(to + W * g, &x, W);
    }
}
template <int N> inline uint64_t load_bytes(const uint8_t* p) {  // up to 8, put together in a register
    constexpr int PART = N >= 8 ? 8 : N >= 4 ? 4 : N >= 2 ? 2 : 1;
    uint64_t low = 0, high = 0;
    std::memcpy(&low, p, PART);
    std::memcpy(&high, p + N - PART, PART);
    if constexpr (N == PART) return low;
    else return low | high << 8 * (N - PART);
}
template <int W> inline Int32 take_codes(const uint8_t* from) {  // 16 of them, of 2 * W bytes
#if defined(__AVX512DQ__)
    if constexpr (W == 1) return (Int32)__builtin_ia32_cvtmask2d512(uint16_t(load_bytes<2>(from))) & 1;
    if constexpr (W > 1 && W <= 4) {  // a byte with two codes for each 64 bits
        using Words = long long __attribute__((vector_size(64)));
        using Signed = char __attribute__((vector_size(16)));
        using Pair = long long __attribute__((vector_size(16)));
        uint64_t x = load_bytes<2 * W>(from);
        if constexpr (W < 4) x = spread<2 * W>(x);
        const Words pairs = (Words)__builtin_ia32_pmovzxbq512_mask((Signed)Pair{(long long)x}, Words{}, -1);
        return (Int32)((pairs | pairs << (32 - W)) & (Words{} + ((1ll << W) - 1) * ((1ll << 32) + 1)));
    }
#endif
    using Pair = uint64_t __attribute__((vector_size(16)));
    return expand((Bytes)Pair{spread<W>(load_bytes<W>(from)), spread<W>(load_bytes<W>(from + W))});
}
// Codes from element `first` on: a multiple of 8 if they are ALIGNED.
template <int W, bool ALIGNED> struct PackedCodes {
    const uint8_t* from;
    int skip;
    PackedCodes(const uint8_t* all, int64_t first) : from(all + uint64_t(first) / 8 * W), skip(ALIGNED ? 0 : int(first % 8)) {}
};
// Load the 16 codes from element `at` on, a multiple of 8; of a ragged end only bytes with the first `live` of them.
template <bool FULL, int W, bool ALIGNED> inline Int32 load_codes(PackedCodes<W, ALIGNED> c, int at, int live) {
    const uint8_t* from = c.from + uint32_t(at) / 8 * W;
    if constexpr (FULL && ALIGNED) return take_codes<W>(from);
    uint8_t bytes[4 * W] = {};
    std::memcpy(bytes, from, ((c.skip + live) * W + 7) / 8);
    if constexpr (ALIGNED) return take_codes<W>(bytes);
    uint8_t codes[4 * 8];
    for (int g = 0; g < 4; ++g) {
        const uint64_t x = spread<W>(load_bytes<W>(bytes + g * W));
        std::memcpy(codes + 8 * g, &x, 8);
    }
    return expand(codes + c.skip);
}

}  // namespace compll
