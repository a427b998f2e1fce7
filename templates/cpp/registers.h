// What works on one register: instructions that compilers do not find, and what they make of it elsewhere.
#pragma once

#include "vectors.h"

namespace compll {

template <class T> using Register = Vector<T, REGISTER / 4>;  // as many elements of less than 32 bits as of 32
using Floats = Register<float>;
using Ints = Register<int32_t>;
using UInts = Register<uint32_t>;
using Words = Vector<uint64_t, REGISTER / 8>;
using Bytes = Whole<uint8_t, 16>;
using Quads = Whole<long long, REGISTER / 8>;

// a > b ? a : b and a < b ? a : b, which of a NaN or of two zeros give b.
template <class V> COMPLL_ALWAYS V register_over(V a, V b) { return a > b ? a : b; }
template <class V> COMPLL_ALWAYS V register_under(V a, V b) { return a < b ? a : b; }
#if defined(__AVX512DQ__)
COMPLL_ALWAYS Floats register_over(Floats a, Floats b) { return __builtin_ia32_maxps512_mask(a, b, Floats{}, -1, 4); }
COMPLL_ALWAYS Floats register_under(Floats a, Floats b) { return __builtin_ia32_minps512_mask(a, b, Floats{}, -1, 4); }
COMPLL_ALWAYS Ints register_over(Ints a, Ints b) { return __builtin_ia32_pmaxsd512_mask(a, b, Ints{}, -1); }
COMPLL_ALWAYS Ints register_under(Ints a, Ints b) { return __builtin_ia32_pminsd512_mask(a, b, Ints{}, -1); }
COMPLL_ALWAYS UInts register_over(UInts a, UInts b) { return (UInts)__builtin_ia32_pmaxud512_mask((Ints)a, (Ints)b, Ints{}, -1); }
COMPLL_ALWAYS UInts register_under(UInts a, UInts b) { return (UInts)__builtin_ia32_pminud512_mask((Ints)a, (Ints)b, Ints{}, -1); }
COMPLL_ALWAYS Floats register_sqrt_(Floats x) { return __builtin_ia32_sqrtps512_mask(x, x, -1, 4); }
#define COMPLL_ROUNDED(MODE, BUILTIN) __builtin_ia32_rndscaleps_mask(x, MODE, x, -1, 4)
#elif defined(__AVX2__)
COMPLL_ALWAYS Floats register_over(Floats a, Floats b) { return __builtin_ia32_maxps256(a, b); }
COMPLL_ALWAYS Floats register_under(Floats a, Floats b) { return __builtin_ia32_minps256(a, b); }
COMPLL_ALWAYS Floats register_sqrt_(Floats x) { return __builtin_ia32_sqrtps256(x); }
#define COMPLL_ROUNDED(MODE, BUILTIN) __builtin_ia32_roundps256(x, MODE)
#else
template <class F> COMPLL_ALWAYS Floats one_by_one(Floats x, F f) {
    for (int j = 0; j < COUNT<Floats>; ++j) x[j] = f(x[j]);
    return x;
}
#if defined(__SSE__)
COMPLL_ALWAYS Floats register_over(Floats a, Floats b) { return __builtin_ia32_maxps(a, b); }
COMPLL_ALWAYS Floats register_under(Floats a, Floats b) { return __builtin_ia32_minps(a, b); }
COMPLL_ALWAYS Floats register_sqrt_(Floats x) { return __builtin_ia32_sqrtps(x); }
#else
COMPLL_ALWAYS Floats register_sqrt_(Floats x) { return one_by_one(x, [](float y) { return __builtin_sqrtf(y); }); }
#endif
#if defined(__SSE4_1__)
#define COMPLL_ROUNDED(MODE, BUILTIN) __builtin_ia32_roundps(x, MODE)
#else
#define COMPLL_ROUNDED(MODE, BUILTIN) one_by_one(x, [](float y) { return BUILTIN(y); })
#endif
#endif
COMPLL_ALWAYS Floats register_round_(Floats x) { return COMPLL_ROUNDED(8, __builtin_rintf); }
COMPLL_ALWAYS Floats register_floor_(Floats x) { return COMPLL_ROUNDED(9, __builtin_floorf); }
COMPLL_ALWAYS Floats register_ceil_(Floats x) { return COMPLL_ROUNDED(10, __builtin_ceilf); }
#undef COMPLL_ROUNDED

COMPLL_ALWAYS bool register_any(Ints m) {
#if defined(__AVX512DQ__)
    return __builtin_ia32_ptestmd512(m, m, -1);
#elif defined(__AVX2__)
    return !__builtin_ia32_ptestz256((Quads)m, (Quads)m);
#else
    const Words words = (Words)m;
    return (words[0] | words[1]) != 0;
#endif
}
COMPLL_ALWAYS uint32_t register_bits(Ints m) {  // a bit for each element: its sign
#if defined(__AVX512DQ__)
    return uint16_t(__builtin_ia32_cvtd2mask512(m));
#elif defined(__AVX2__)
    return __builtin_ia32_movmskps256((Floats)m);
#elif defined(__SSE__)
    return __builtin_ia32_movmskps((Floats)m);
#else
    uint32_t bits = 0;
    for (int j = 0; j < COUNT<Ints>; ++j) bits |= (uint32_t(m[j]) & 1) << j;
    return bits;
#endif
}
COMPLL_ALWAYS Words register_product(Words a, Words b) {  // of the lower halves of elements
#if defined(__AVX512DQ__)
    return (Words)__builtin_ia32_pmuludq512_mask((Ints)a, (Ints)b, Quads{}, 0xff);
#elif defined(__AVX2__)
    return (Words)__builtin_ia32_pmuludq256((Ints)a, (Ints)b);
#elif defined(__SSE2__)
    return (Words)__builtin_ia32_pmuludq128((Ints)a, (Ints)b);
#else
    return (a & 0xffffffffull) * (b & 0xffffffffull);
#endif
}

// As C converts.  To wider integers compilers go by halves, or one by one.
template <class T, class V> COMPLL_ALWAYS auto padded(const V& x) {  // to 16 bytes, which instructions take
    if constexpr (sizeof(V) == 4) return (Whole<T, 16 / sizeof(T)>)Whole<uint32_t, 4>{(uint32_t)x};
    else if constexpr (sizeof(V) == 8) return (Whole<T, 16 / sizeof(T)>)Whole<uint64_t, 2>{(uint64_t)x};
    else return (Whole<T, COUNT<V>>)x;
}
#if defined(__AVX512DQ__)
#define COMPLL_WIDER(KIND, T, TO) __builtin_ia32_pmov##KIND##512_mask(padded<T>(x), TO{}, -1)
#elif defined(__AVX2__)
#define COMPLL_WIDER(KIND, T, TO) __builtin_ia32_pmov##KIND##256(padded<T>(x))
#elif defined(__SSE4_1__)
#define COMPLL_WIDER(KIND, T, TO) __builtin_ia32_pmov##KIND##128(padded<T>(x))
#endif
template <class To, class V> COMPLL_ALWAYS To register_converted(const V& x) {
#if defined(COMPLL_WIDER)
    using From = Element<V>;
    constexpr bool wider = std::is_integral_v<Element<To>> && sizeof(To) == REGISTER && sizeof(V) < REGISTER;
    constexpr int from = wider ? sizeof(From) : 0, to = wider ? sizeof(Element<To>) : 0;
    if constexpr (from == 1 && to == 4 && std::is_unsigned_v<From>) return (To)COMPLL_WIDER(zxbd, char, Ints);
    else if constexpr (from == 1 && to == 4) return (To)COMPLL_WIDER(sxbd, char, Ints);
    else if constexpr (from == 2 && to == 4 && std::is_unsigned_v<From>) return (To)COMPLL_WIDER(zxwd, short, Ints);
    else if constexpr (from == 2 && to == 4) return (To)COMPLL_WIDER(sxwd, short, Ints);
    else if constexpr (from == 4 && to == 8 && std::is_unsigned_v<From>) return (To)COMPLL_WIDER(zxdq, int, Quads);
    else if constexpr (from == 4 && to == 8) return (To)COMPLL_WIDER(sxdq, int, Quads);
    else
#endif
    return __builtin_convertvector(x, To);
}
#undef COMPLL_WIDER
template <class To, class V> COMPLL_ALWAYS To converted(const V& x) {
    constexpr bool integers = std::is_integral_v<Element<To>> && std::is_integral_v<Element<V>>;
    if constexpr (integers && !IS_HALVES<To> && sizeof(To) == REGISTER && sizeof(V) == 2 * REGISTER) return evens((To)x.low, (To)x.high);
    else if constexpr (IS_HALVES<To> || IS_HALVES<V>) return join<To>(converted<Half<To>>(low(x)), converted<Half<To>>(high(x)));
    else return register_converted<To>(x);
}

template <class V> COMPLL_ALWAYS Bytes low_bytes(const V& x) {  // the lower 8 bits of 16 elements
    using Pairs = Whole<uint16_t, REGISTER / 2>;
    if constexpr (REGISTER == 64) return register_converted<Bytes>(x);
    else if constexpr (REGISTER == 32) return register_converted<Bytes>(evens((Pairs)x.low, (Pairs)x.high));
    else return evens((Bytes)evens((Pairs)x.low.low, (Pairs)x.low.high), (Bytes)evens((Pairs)x.high.low, (Pairs)x.high.high));
}
// Codes of a half and their values, as half.h has them, except for a NaN that is not the canonical one.
using Shorts = Register<short>;
#if defined(__AVX512DQ__)
#define COMPLL_HALF_CODES
COMPLL_ALWAYS Floats register_of_half(Register<uint16_t> x) { return __builtin_ia32_vcvtph2ps512_mask((Shorts)x, Floats{}, -1, 4); }
COMPLL_ALWAYS Register<uint16_t> register_to_half(Floats x) { return (Register<uint16_t>)__builtin_ia32_vcvtps2ph512_mask(x, 0, Shorts{}, -1); }
#elif defined(__AVX2__) && defined(__F16C__)
#define COMPLL_HALF_CODES
COMPLL_ALWAYS Floats register_of_half(Register<uint16_t> x) { return __builtin_ia32_vcvtph2ps256((Shorts)x); }
COMPLL_ALWAYS Register<uint16_t> register_to_half(Floats x) { return (Register<uint16_t>)__builtin_ia32_vcvtps2ph256(x, 0); }
#endif

}  // namespace compll
