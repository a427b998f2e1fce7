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
            return converted<Int32>(under(over(x, Float{}), splat<Float>(high)));
        if (low >= -(1 << 24) && high <= 1 << 24) {
#if defined(__AVX512DQ__)
            const uint16_t numbers = __builtin_ia32_cmpps512_mask(x, x, 7, -1, 4);  // none is NaN: others become 0
            const Float bounded = __builtin_ia32_minps512_mask(over(x, splat<Float>(low)), splat<Float>(high), Float{}, numbers, 4);
            return converted<Int32>(bounded);
#else
            return converted<Int32>(clamp(select(ne(x, x), Float{}, x), float(low), float(high)));
#endif
        }
    }
    const Float bound = splat<Float>(0x1p31f);
    if (!any(negation(lt(absolute(x), bound)))) {  // as a rule 32 bits hold them all
        const Int32 whole = converted<Int32>(x);
        if constexpr (std::is_same_v<To, Int32>) return clamp(whole, low, high);
        else if constexpr (std::is_signed_v<Element<To>>) return clamp(converted<To>(whole), low, high);
        else return clamp(converted<To>(select(lt(whole, Int32{}), Int32{}, whole)), low, high);
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
        else return converted<To>(y);
    }
}
template <class To, class From> inline To widen(From x) {  // between integers that hold the value; to float
    if constexpr (std::is_arithmetic_v<To>) return static_cast<To>(x);
    else if constexpr (std::is_same_v<To, From>) return x;
    else return converted<To>(x);
}

// --- memory --------------------------------------------------------------------------------------------
template <class T, int N> struct AsLoose { using type __attribute__((vector_size(N * sizeof(T)), aligned(1), may_alias)) = T; };
template <class T, int N> using Loose = typename AsLoose<T, N>::type;  // a vector in memory, which may begin anywhere
inline Mask first_lanes(int live) { return lt(numbers<Int32>(), splat<Int32>(live)); }
template <class V, class T> COMPLL_ALWAYS V load_all(const T* p) {
    if constexpr (IS_HALVES<V>) return {load_all<Half<V>>(p), load_all<Half<V>>(p + COUNT<V> / 2)};
    else return register_converted<V>((Whole<T, COUNT<V>>) * (const Loose<T, COUNT<V>>*)p);
}
template <class T, class V> COMPLL_ALWAYS void store_all(T* p, const V& x) {
    if constexpr (sizeof(T) == 1) *(Loose<uint8_t, WIDTH>*)p = low_bytes(converted<Int32>(x));
    else if constexpr (!IS_HALVES<V>) *(Loose<T, COUNT<V>>*)p = register_converted<Whole<T, COUNT<V>>>(x);
    else {
        store_all(p, x.low);
        store_all(p + COUNT<V> / 2, x.high);
    }
}
// Load 16 elements of storage type T as lanes V; of a ragged end only `live`, the others are 0.
template <class V, bool FULL, class T> inline V load(const T* p, int live) {
    T buffer[WIDTH] = {};
    if constexpr (!FULL) {
        for (int j = 0; j < WIDTH; ++j) buffer[j] = j < live ? p[j] : T(0);
        p = buffer;
    }
    return load_all<V>(p);
}
template <bool FULL, class T, class V> inline void store(T* p, V x, int live) {
    if constexpr (FULL) store_all(p, x);
    else {
        for (int j = 0; j < WIDTH; ++j)
            if (j < live) p[j] = T(x[j]);
    }
}
// 16 codes of a half or bfloat16, and their values.
using Codes = Lanes<uint16_t>;
template <class H> inline Float widened(Codes x) {
#if defined(COMPLL_HALF_CODES)
    if constexpr (std::is_same_v<H, half>) return by_register<Float>([](auto codes) { return register_of_half(codes); }, x);
#endif
    return H::template widened<Float>(converted<UInt32>(x));
}
template <class H> inline Codes rounded(Float x) {
#if defined(COMPLL_HALF_CODES)
    if constexpr (std::is_same_v<H, half>) return by_register<Codes>([](auto y) { return register_to_half(y); }, canonical(x));
#endif
    return converted<Codes>(H::rounded(x));
}
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
template <class M> COMPLL_ALWAYS uint32_t mask_bits(const M& m) {  // one bit a lane
    if constexpr (IS_HALVES<M>) return mask_bits(m.low) | mask_bits(m.high) << COUNT<M> / 2;
    else return register_bits(m);
}
inline void put_bits(uint8_t* to, Mask m) {
    const uint16_t bits = uint16_t(mask_bits(m));
    std::memcpy(to, &bits, 2);
}
template <int W> inline void put_codes(uint8_t* to, Int32 codes) {  // 16 of them, in 2 * W bytes
#if defined(__AVX512DQ__)
    if constexpr (W <= 4) {  // two codes side by side in a byte of each 64 bits
        const auto pairs = (Quads)codes | (Quads)codes >> (32 - W);
        const auto bytes = __builtin_ia32_pmovqb512_mask(pairs, Whole<char, 16>{}, -1);
        uint64_t x;
        std::memcpy(&x, &bytes, 8);
        if constexpr (W < 4) x = squeeze<2 * W>(x);
        std::memcpy(to, &x, 2 * W);
        return;
    }
#endif
    const auto bytes = (Whole<uint64_t, 2>)low_bytes(codes);
    for (int g = 0; g < 2; ++g) {
        const uint64_t x = squeeze<W>(bytes[g]);
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
        uint64_t x = load_bytes<2 * W>(from);
        if constexpr (W < 4) x = spread<2 * W>(x);
        const Quads pairs = __builtin_ia32_pmovzxbq512_mask((Whole<char, 16>)Whole<uint64_t, 2>{x}, Quads{}, -1);
        return (Int32)((pairs | pairs << (32 - W)) & (Quads{} + ((1ll << W) - 1) * ((1ll << 32) + 1)));
    }
#elif defined(__AVX2__)
    if constexpr (W <= 4) {  // 8 of them in the 32 bits of each lane
        const UInt32 all = {splat<UInts>(uint32_t(load_bytes<W>(from))), splat<UInts>(uint32_t(load_bytes<W>(from + W)))};
        return Int32(all >> (numbers<UInt32>() & 7u) * uint32_t(W) & ((1u << W) - 1));
    }
#endif
    const uint64_t both[2] = {spread<W>(load_bytes<W>(from)), spread<W>(load_bytes<W>(from + W))};
    return load_all<Int32>((const uint8_t*)both);
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
    return load_all<Int32>(codes + c.skip);
}

}  // namespace compll
