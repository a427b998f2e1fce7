// Lanes: 16 elements at a time, in vectors of GCC, and the operators on them.
//
// Every function is overloaded for scalars and lanes; each does exactly what the language's reference says.
#pragma once

#include "registers.h"

namespace compll {

constexpr int TILE = 1024, ROWS = 8, LANES = 128, WIDTH = 16, BLOCKS = LANES / WIDTH;

template <class T> using Lanes = Vector<T, WIDTH>;
using Float = Lanes<float>;
using Int32 = Lanes<int32_t>;
using UInt32 = Lanes<uint32_t>;
using Int64 = Lanes<int64_t>;
using UInt64 = Lanes<uint64_t>;
using Mask = Int32;  // -1 where true

template <class V, class F> inline V each(F f) {  // lane by lane, for what vectors cannot do
    Element<V> all[COUNT<V>];
    for (int j = 0; j < COUNT<V>; ++j) all[j] = f(j);
    V out;
    std::memcpy(&out, all, sizeof out);
    return out;
}

// --- conditions -------------------------------------------------------------------------------------
template <class V> using Truth = Vector<std::conditional_t<sizeof(Element<V>) == 8, int64_t, int32_t>, COUNT<V>>;
#define COMPLL_COMPARE(NAME, OP)                                                                            \
    template <class T> COMPLL_ALWAYS auto NAME(T a, T b) {                                                  \
        if constexpr (std::is_arithmetic_v<T>) return a OP b;                                               \
        else {                                                                                              \
            const auto wide = by_register<Truth<T>>([](auto x, auto y) { return Truth<decltype(x)>(x OP y); }, a, b); \
            return converted<Vector<int32_t, COUNT<T>>>(wide);                                              \
        }                                                                                                   \
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
template <class M> COMPLL_ALWAYS bool any(const M& m) {
    if constexpr (IS_HALVES<M>) return any(m.low | m.high);
    else return register_any(m);
}
template <class C, class V> COMPLL_ALWAYS V select(const C& c, V a, V b) {
    if constexpr (std::is_same_v<C, bool>) return c ? a : b;
    else return by_register<V>([](auto x, auto y, auto z) { return x ? y : z; }, converted<Truth<V>>(c), a, b);
}

// --- arithmetic ---------------------------------------------------------------------------------------
template <class T> inline T divide_one(T a, T b) {
    if constexpr (std::is_floating_point_v<T>) return a / b;
    else if constexpr (std::is_signed_v<T>) return b == 0 ? 0 : b == -1 ? T(0 - std::make_unsigned_t<T>(a)) : a / b;
    else return b == 0 ? 0 : a / b;
}
template <class T> inline T divide(T a, T b) {
    if constexpr (std::is_arithmetic_v<T>) return divide_one(a, b);
    else if constexpr (std::is_same_v<Element<T>, float>) return a / b;
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
    return (Vector<std::make_unsigned_t<Element<T>>, COUNT<T>>)x;
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
template <class T> COMPLL_ALWAYS T over(T a, T b) {
    if constexpr (std::is_arithmetic_v<T>) return a > b ? a : b;
    else return by_register<T>([](auto x, auto y) { return register_over(x, y); }, a, b);
}
template <class T> COMPLL_ALWAYS T under(T a, T b) {
    if constexpr (std::is_arithmetic_v<T>) return a < b ? a : b;
    else return by_register<T>([](auto x, auto y) { return register_under(x, y); }, a, b);
}
template <class T> inline T greater(T a, T b) { return select(ne(a, a), a, over(a, b)); }
template <class T> inline T smaller(T a, T b) { return select(ne(a, a), a, under(a, b)); }

inline uint32_t bits_of(float x) { uint32_t b; std::memcpy(&b, &x, 4); return b; }
inline float of_bits(uint32_t b) { float x; std::memcpy(&x, &b, 4); return x; }
inline UInt32 bits_of(Float x) { return (UInt32)x; }
inline Float of_bits(UInt32 b) { return (Float)b; }
template <class T> inline T canonical(T x) {  // the one NaN that is ever written
    if constexpr (std::is_same_v<T, float>) return x != x ? of_bits(0x7fc00000u) : x;
    else if constexpr (std::is_same_v<Element<T>, float>) return select(ne(x, x), of_bits(splat<UInt32>(0x7fc00000u)), x);
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
    else if constexpr (std::is_same_v<Element<T>, float>) return of_bits(bits_of(x) & 0x7fffffffu);
    else return select(lt(x, splat<T>(0)), T(splat<T>(0) - x), x);
}
#define COMPLL_ROUNDING(NAME, BUILTIN)                                                                                   \
    template <class T> inline T NAME(T x) {                                                                             \
        if constexpr (std::is_same_v<T, float>) return BUILTIN(x);                                                      \
        else if constexpr (std::is_same_v<T, Float>) return by_register<Float>([](auto y) { return register_##NAME(y); }, x); \
        else return x;                                                                                                  \
    }
COMPLL_ROUNDING(round_, __builtin_rintf)
COMPLL_ROUNDING(floor_, __builtin_floorf)
COMPLL_ROUNDING(ceil_, __builtin_ceilf)
COMPLL_ROUNDING(sqrt_, __builtin_sqrtf)
#undef COMPLL_ROUNDING
inline bool isnan_(float x) { return x != x; }
inline Mask isnan_(Float x) { return ne(x, x); }
inline int64_t bit(bool b) { return b; }
inline Int32 bit(Mask m) { return m & 1; }
template <class T> inline auto sign(T x) { return bit(gt(x, splat<T>(0))) - bit(lt(x, splat<T>(0))); }
inline int64_t popcount_one(uint64_t x) { return __builtin_popcountll(x); }
template <class T> inline auto popcount(T x) {
    if constexpr (std::is_arithmetic_v<T>) return popcount_one(std::make_unsigned_t<T>(x));
    else return each<Vector<int32_t, COUNT<T>>>([&](int j) { return popcount_one(std::make_unsigned_t<Element<T>>(x[j])); });
}

// --- what elementary.h is written in ------------------------------------------------------------------
#define COMPLL_FUNCTION inline
template <class T> struct IntegersOf;
template <> struct IntegersOf<float> { using Signed = int32_t; using Unsigned = uint32_t; };
template <> struct IntegersOf<Float> { using Signed = Int32; using Unsigned = UInt32; };
template <class T> using SignedOf = typename IntegersOf<T>::Signed;
template <class T> using UnsignedOf = typename IntegersOf<T>::Unsigned;

inline int32_t whole(float x) { return int32_t(x); }
inline Int32 whole(Float x) { return converted<Int32>(x); }
inline float real(int32_t x) { return float(x); }
inline Float real(Int32 x) { return converted<Float>(x); }

}  // namespace compll
