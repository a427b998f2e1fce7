// The operators of the language on one element.  Names are those of the C++ runtime, where they work on lanes;
// here a lane is a plain number.  Signed sums are made of unsigned ones: they wrap, and nothing is undefined.
#pragma once

#include "portable.cuh"

namespace compll {

using Float = float;
using Int32 = int32_t;
using UInt32 = uint32_t;
using Int64 = int64_t;
using UInt64 = uint64_t;
using Mask = bool;

template <class V, class T> COMPLL_BOTH V splat(T x) { return static_cast<V>(x); }
template <class V, class T> COMPLL_BOTH V widen(T x) { return static_cast<V>(x); }

template <class T> COMPLL_BOTH bool lt(T a, T b) { return a < b; }
template <class T> COMPLL_BOTH bool le(T a, T b) { return a <= b; }
template <class T> COMPLL_BOTH bool gt(T a, T b) { return a > b; }
template <class T> COMPLL_BOTH bool ge(T a, T b) { return a >= b; }
template <class T> COMPLL_BOTH bool eq(T a, T b) { return a == b; }
template <class T> COMPLL_BOTH bool ne(T a, T b) { return a != b; }
COMPLL_BOTH bool both(bool a, bool b) { return a && b; }
COMPLL_BOTH bool either(bool a, bool b) { return a || b; }
COMPLL_BOTH bool negation(bool a) { return !a; }
template <class T> COMPLL_BOTH T select(bool c, T a, T b) { return c ? a : b; }

template <class T> COMPLL_BOTH T wrap_add(T a, T b) { return T(Unsigned<T>(a) + Unsigned<T>(b)); }
template <class T> COMPLL_BOTH T wrap_subtract(T a, T b) { return T(Unsigned<T>(a) - Unsigned<T>(b)); }
template <class T> COMPLL_BOTH T wrap_multiply(T a, T b) { return T(Unsigned<T>(a) * Unsigned<T>(b)); }
template <class T> COMPLL_BOTH T wrap_negate(T a) { return T(Unsigned<T>(0) - Unsigned<T>(a)); }

template <class T> COMPLL_BOTH T divide(T a, T b) {
    if constexpr (is_float<T>) return a / b;
    else if constexpr (is_signed<T>) return b == T(0) ? T(0) : b == T(-1) ? wrap_negate(a) : T(a / b);
    else return b == T(0) ? T(0) : T(a / b);
}
template <class T> COMPLL_BOTH T remainder(T a, T b) {
    if constexpr (is_signed<T>) return b == T(0) || b == T(-1) ? T(0) : T(a % b);
    else return b == T(0) ? T(0) : T(a % b);
}
template <class T> COMPLL_BOTH T shift_left(T a, T n) {
    constexpr int width = sizeof(T) * 8;
    if (is_signed<T> && n < T(0)) n = T(0);
    return n >= T(width) ? T(0) : T(Unsigned<T>(a) << int(n));
}
template <class T> COMPLL_BOTH T shift_right(T a, T n) {
    constexpr int width = sizeof(T) * 8;
    if (is_signed<T> && n < T(0)) n = T(0);
    if (n >= T(width)) return is_signed<T> && a < T(0) ? T(-1) : T(0);
    return a >> int(n);
}
template <class T> COMPLL_BOTH T greater(T a, T b) { return a > b || a != a ? a : b; }
template <class T> COMPLL_BOTH T smaller(T a, T b) { return a < b || a != a ? a : b; }

COMPLL_BOTH uint32_t bits_of(float x) {
    uint32_t b;
    memcpy(&b, &x, 4);
    return b;
}
COMPLL_BOTH float of_bits(uint32_t b) {
    float x;
    memcpy(&x, &b, 4);
    return x;
}
COMPLL_BOTH bool not_finite(float x) { return (bits_of(x) & 0x7f800000u) == 0x7f800000u; }
template <class T> COMPLL_BOTH T canonical(T x) {  // the one NaN that is ever written
    if constexpr (is_float<T>) return x != x ? of_bits(0x7fc00000u) : x;
    else return x;
}
// Of floats whose sign bits are not set their bits are ordered as they are, and a NaN's are beyond those of infinity.
COMPLL_BOTH float greater_of_positives(float a, float b) { return bits_of(a) > bits_of(b) ? a : b; }
COMPLL_BOTH uint32_t float_bits(float x) { return bits_of(canonical(x)); }
COMPLL_BOTH float bits_float(uint32_t x) { return of_bits(x); }

template <class T> COMPLL_BOTH T absolute(T x) {
    if constexpr (is_float<T>) return of_bits(bits_of(x) & 0x7fffffffu);
    else return is_signed<T> && x < T(0) ? wrap_negate(x) : x;
}
#define COMPLL_ROUNDING(NAME, FUNCTION)             \
    template <class T> COMPLL_BOTH T NAME(T x) {    \
        if constexpr (is_float<T>) return FUNCTION(x); \
        else return x;                              \
    }
COMPLL_ROUNDING(floor_, ::floorf)
COMPLL_ROUNDING(ceil_, ::ceilf)
COMPLL_ROUNDING(round_, ::rintf)
COMPLL_ROUNDING(sqrt_, ::sqrtf)
#undef COMPLL_ROUNDING
COMPLL_BOTH bool isnan_(float x) { return x != x; }
COMPLL_BOTH int64_t bit(bool b) { return b; }
template <class T> COMPLL_BOTH int64_t sign(T x) { return bit(x > T(0)) - bit(x < T(0)); }
template <class T> COMPLL_BOTH int64_t popcount(T x) {
    uint64_t u = Unsigned<T>(x);
    u -= (u >> 1) & 0x5555555555555555u;
    u = (u & 0x3333333333333333u) + ((u >> 2) & 0x3333333333333333u);
    u = (u + (u >> 4)) & 0x0f0f0f0f0f0f0f0fu;
    return int64_t((u * 0x0101010101010101u) >> 56);
}

// Truncate toward zero, saturate, NaN gives 0.  As floats, `low` is exact and `high` is exact or one more, so
// that what is neither at or below the one nor at or above the other converts without overflow.
template <class To, class From> COMPLL_BOTH To saturate(From x, To low, To high) {
    if constexpr (is_float<From>) {
        if (x != x) return To(0);
        return x <= float(low) ? low : x >= float(high) ? high : To(x);
    } else if constexpr (is_signed<From>) {
        if (x < From(0)) return is_signed<To> ? (int64_t(x) < int64_t(low) ? low : To(x)) : To(0);
        return uint64_t(x) > uint64_t(high) ? high : To(x);
    } else {
        return uint64_t(x) > uint64_t(high) ? high : To(x);
    }
}
template <class To, class From> COMPLL_BOTH To saturate_one(From x, To low, To high) {
    return saturate<To>(x, low, high);
}

template <class V, class F> COMPLL_DEVICE V each(F f) { return f(0); }  // lane by lane: there is one

// --- what elementary.h is written in ------------------------------------------------------------------
#define COMPLL_FUNCTION COMPLL_BOTH
template <class T> using SignedOf = int32_t;
template <class T> using UnsignedOf = uint32_t;
COMPLL_BOTH int32_t whole(float x) { return int32_t(x); }
COMPLL_BOTH float real(int32_t x) { return float(x); }

}  // namespace compll

#include "elementary.cuh"
#include "half.cuh"
