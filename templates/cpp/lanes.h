// Lanes: 16 elements at a time, in vector types of GCC and Clang, and the operators on them.
//
// Every function is overloaded for scalars and lanes; each does exactly what the language's reference says.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

namespace compll {

constexpr int TILE = 1024, ROWS = 8, LANES = 128, WIDTH = 16, BLOCKS = LANES / WIDTH;

using Float = float __attribute__((vector_size(64)));
using Int32 = int32_t __attribute__((vector_size(64)));
using UInt32 = uint32_t __attribute__((vector_size(64)));
using Int64 = int64_t __attribute__((vector_size(128)));
using UInt64 = uint64_t __attribute__((vector_size(128)));
using Mask = Int32;  // -1 where true

template <class T> struct LanesOf;
template <> struct LanesOf<float> { using type = Float; };
template <> struct LanesOf<int32_t> { using type = Int32; };
template <> struct LanesOf<uint32_t> { using type = UInt32; };
template <> struct LanesOf<int64_t> { using type = Int64; };
template <> struct LanesOf<uint64_t> { using type = UInt64; };
template <class T> using Lanes = typename LanesOf<T>::type;
template <class V> using Element = std::remove_cv_t<std::remove_reference_t<decltype(std::declval<V>()[0])>>;

template <class V, class T> inline V splat(T x) {
    if constexpr (std::is_arithmetic_v<V>) return static_cast<V>(x);
    else return static_cast<Element<V>>(x) - V{};  // x - 0 is x, also for -0
}
template <class V, class F> inline V each(F f) {  // lane by lane, for what vectors cannot do
    V out;
    for (int j = 0; j < WIDTH; ++j) out[j] = f(j);
    return out;
}

// --- conditions -------------------------------------------------------------------------------------
inline Mask mask(Int32 m) { return m; }
inline Mask mask(Int64 m) { return __builtin_convertvector(m, Int32); }
#define COMPLL_COMPARE(NAME, OP)                                                        \
    template <class T> inline auto NAME(T a, T b) {                                     \
        if constexpr (std::is_arithmetic_v<T>) return a OP b;                           \
        else return mask(a OP b);                                                       \
    }
COMPLL_COMPARE(lt, <)
COMPLL_COMPARE(le, <=)
COMPLL_COMPARE(gt, >)
COMPLL_COMPARE(ge, >=)
COMPLL_COMPARE(eq, ==)
COMPLL_COMPARE(ne, !=)
#undef COMPLL_COMPARE
inline bool both(bool a, bool b) { return a && b; }
inline bool either(bool a, bool b) { return a || b; }
inline bool negation(bool a) { return !a; }
inline Mask both(Mask a, Mask b) { return a & b; }
inline Mask either(Mask a, Mask b) { return a | b; }
inline Mask negation(Mask a) { return ~a; }
inline bool any(Mask m) {
#if defined(__AVX512F__)
    return __builtin_ia32_ptestmd512(m, m, -1);
#else
    using Words = uint64_t __attribute__((vector_size(64)));
    uint64_t some = 0;
    for (int j = 0; j < WIDTH / 2; ++j) some |= ((Words)m)[j];
    return some != 0;
#endif
}
template <class T> inline T select(bool c, T a, T b) { return c ? a : b; }
template <class V> inline V select(Mask c, V a, V b) {
    if constexpr (sizeof(V) == sizeof(Mask)) return c ? a : b;
    else return __builtin_convertvector(c, Int64) ? a : b;
}

// --- arithmetic ---------------------------------------------------------------------------------------
template <class T> inline T divide_one(T a, T b) {
    if constexpr (std::is_floating_point_v<T>) return a / b;
    else if constexpr (std::is_signed_v<T>) return b == 0 ? 0 : b == -1 ? T(0 - std::make_unsigned_t<T>(a)) : a / b;
    else return b == 0 ? 0 : a / b;
}
template <class T> inline T divide(T a, T b) {
    if constexpr (std::is_arithmetic_v<T>) return divide_one(a, b);
    else if constexpr (std::is_same_v<T, Float>) return a / b;
    else return each<T>([&](int j) { return divide_one(a[j], b[j]); });
}
template <class T> inline T remainder_one(T a, T b) { return b == 0 ? 0 : T(a - divide_one(a, b) * b); }
template <class T> inline T remainder(T a, T b) {
    if constexpr (std::is_arithmetic_v<T>) return remainder_one(a, b);
    else return each<T>([&](int j) { return remainder_one(a[j], b[j]); });
}
template <class T> inline T shift_left_one(T a, T n) {
    constexpr int width = sizeof(T) * 8;
    if (std::is_signed_v<T> && n < T(0)) n = 0;
    return n >= T(width) ? 0 : T(std::make_unsigned_t<T>(a) << n);
}
template <class T> inline T shift_right_one(T a, T n) {
    constexpr int width = sizeof(T) * 8;
    if (std::is_signed_v<T> && n < T(0)) n = 0;
    if (n >= T(width)) return std::is_signed_v<T> && a < T(0) ? T(-1) : T(0);
    return a >> n;
}
template <class T> inline auto unsigned_of(T x) {
    if constexpr (sizeof(Element<T>) == 4) return (UInt32)x;
    else return (UInt64)x;
}
template <class T> inline T count_of(T n) {  // of a shift: a negative one counts as 0
    if constexpr (std::is_signed_v<Element<T>>) return select(lt(n, T{}), T{}, n);
    else return n;
}
template <class T> inline T shift_left(T a, T n) {
    if constexpr (std::is_arithmetic_v<T>) return shift_left_one(a, n);
    else {
        constexpr int width = sizeof(Element<T>) * 8;
        const T count = count_of(n);
        return select(lt(count, splat<T>(width)), T(unsigned_of(a) << unsigned_of(count & (width - 1))), T{});
    }
}
template <class T> inline T shift_right(T a, T n) {
    if constexpr (std::is_arithmetic_v<T>) return shift_right_one(a, n);
    else {
        constexpr int width = sizeof(Element<T>) * 8;
        const T count = count_of(n), within = count & (width - 1);
        if constexpr (std::is_signed_v<Element<T>>) return a >> select(lt(count, splat<T>(width)), within, splat<T>(width - 1));
        else return select(lt(count, splat<T>(width)), T(a >> within), T{});
    }
}
// a > b ? a : b and a < b ? a : b, which of a NaN or of two zeros give b: instructions, where compilers miss them.
#if defined(__AVX512F__)
inline Float over(Float a, Float b) { return __builtin_ia32_maxps512_mask(a, b, Float{}, -1, 4); }
inline Float under(Float a, Float b) { return __builtin_ia32_minps512_mask(a, b, Float{}, -1, 4); }
inline Int32 over(Int32 a, Int32 b) { return __builtin_ia32_pmaxsd512_mask(a, b, Int32{}, -1); }
inline Int32 under(Int32 a, Int32 b) { return __builtin_ia32_pminsd512_mask(a, b, Int32{}, -1); }
inline UInt32 over(UInt32 a, UInt32 b) { return (UInt32)__builtin_ia32_pmaxud512_mask((Int32)a, (Int32)b, Int32{}, -1); }
inline UInt32 under(UInt32 a, UInt32 b) { return (UInt32)__builtin_ia32_pminud512_mask((Int32)a, (Int32)b, Int32{}, -1); }
#endif
template <class T> inline T over(T a, T b) { return select(gt(a, b), a, b); }
template <class T> inline T under(T a, T b) { return select(lt(a, b), a, b); }
template <class T> inline T greater(T a, T b) { return select(ne(a, a), a, over(a, b)); }
template <class T> inline T smaller(T a, T b) { return select(ne(a, a), a, under(a, b)); }

inline uint32_t bits_of(float x) { uint32_t b; std::memcpy(&b, &x, 4); return b; }
inline float of_bits(uint32_t b) { float x; std::memcpy(&x, &b, 4); return x; }
inline UInt32 bits_of(Float x) { return (UInt32)x; }
inline Float of_bits(UInt32 b) { return (Float)b; }
template <class T> inline T canonical(T x) {  // the one NaN that is ever written
    if constexpr (std::is_same_v<T, float>) return x != x ? of_bits(0x7fc00000u) : x;
    else if constexpr (std::is_same_v<T, Float>) return select(ne(x, x), of_bits(splat<UInt32>(0x7fc00000u)), x);
    else return x;
}
// Of floats whose sign bits are not set their bits are ordered as they are, and a NaN's are beyond those of infinity.
template <class T> inline T greater_of_positives(T a, T b) { return of_bits(over(bits_of(a), bits_of(b))); }
inline uint32_t float_bits(float x) { return bits_of(canonical(x)); }
inline UInt32 float_bits(Float x) { return bits_of(canonical(x)); }
inline float bits_float(uint32_t x) { return of_bits(x); }
inline Float bits_float(UInt32 x) { return of_bits(x); }

template <class T> inline T absolute(T x) {
    if constexpr (std::is_same_v<T, float>) return of_bits(bits_of(x) & 0x7fffffffu);
    else if constexpr (std::is_same_v<T, Float>) return of_bits(bits_of(x) & 0x7fffffffu);
    else return select(lt(x, splat<T>(0)), T(splat<T>(0) - x), x);
}
// Rounding and square roots are one instruction; of a loop over lanes compilers make it only when they try hard.
#if defined(__AVX512F__)
#define COMPLL_ALL_LANES(MODE, BUILTIN) __builtin_ia32_rndscaleps_mask(x, MODE, x, -1, 4)
inline Float sqrt_(Float x) { return __builtin_ia32_sqrtps512_mask(x, x, -1, 4); }
#elif defined(__AVX__)
using EightFloats = float __attribute__((vector_size(32)));
template <class F> inline Float by_eight(Float x, F f) {
    EightFloats parts[2];
    std::memcpy(parts, &x, sizeof x);
    for (EightFloats& part : parts) part = f(part);
    std::memcpy(&x, parts, sizeof x);
    return x;
}
#define COMPLL_ALL_LANES(MODE, BUILTIN) by_eight(x, [](EightFloats y) { return __builtin_ia32_roundps256(y, MODE); })
inline Float sqrt_(Float x) { return by_eight(x, [](EightFloats y) { return __builtin_ia32_sqrtps256(y); }); }
#else
#define COMPLL_ALL_LANES(MODE, BUILTIN) each<Float>([&](int j) { return BUILTIN(x[j]); })
inline Float sqrt_(Float x) { return each<Float>([&](int j) { return __builtin_sqrtf(x[j]); }); }
#endif
#define COMPLL_ROUNDING(NAME, MODE, BUILTIN)                            \
    inline Float NAME(Float x) { return COMPLL_ALL_LANES(MODE, BUILTIN); } \
    template <class T> inline T NAME(T x) {                             \
        if constexpr (std::is_same_v<T, float>) return BUILTIN(x);      \
        else return x;                                                  \
    }
COMPLL_ROUNDING(round_, 8, __builtin_rintf)
COMPLL_ROUNDING(floor_, 9, __builtin_floorf)
COMPLL_ROUNDING(ceil_, 10, __builtin_ceilf)
#undef COMPLL_ROUNDING
#undef COMPLL_ALL_LANES
inline float sqrt_(float x) { return __builtin_sqrtf(x); }
inline bool isnan_(float x) { return x != x; }
inline Mask isnan_(Float x) { return ne(x, x); }
inline int64_t bit(bool b) { return b; }
inline Int32 bit(Mask m) { return m & 1; }
template <class T> inline auto sign(T x) { return bit(gt(x, splat<T>(0))) - bit(lt(x, splat<T>(0))); }
inline int64_t popcount_one(uint64_t x) { return __builtin_popcountll(x); }
template <class T> inline auto popcount(T x) {
    if constexpr (std::is_arithmetic_v<T>) return popcount_one(std::make_unsigned_t<T>(x));
    else return each<Int32>([&](int j) { return popcount_one(std::make_unsigned_t<Element<T>>(x[j])); });
}

// --- what elementary.h is written in ------------------------------------------------------------------
#define COMPLL_FUNCTION inline
template <class T> struct IntegersOf;
template <> struct IntegersOf<float> { using Signed = int32_t; using Unsigned = uint32_t; };
template <> struct IntegersOf<Float> { using Signed = Int32; using Unsigned = UInt32; };
template <class T> using SignedOf = typename IntegersOf<T>::Signed;
template <class T> using UnsignedOf = typename IntegersOf<T>::Unsigned;

inline int32_t whole(float x) { return int32_t(x); }
inline Int32 whole(Float x) { return __builtin_convertvector(x, Int32); }
inline float real(int32_t x) { return float(x); }
inline Float real(Int32 x) { return __builtin_convertvector(x, Float); }

}  // namespace compll
