// exp, exp2, log and log2 of float32: the polynomials of compll/elementary.py, in the same order, for scalars
// and lanes.  Only + - *, rounding to an integer and bit casts; so every backend has the same bits.
// The runtimes of C++ (after lanes.h) and of CUDA (after scalar.cuh) both include this text.
#pragma once

namespace compll {

template <class T> COMPLL_FUNCTION T top(T x) { return of_bits(UnsignedOf<T>(bits_of(x) & 0xfffff000u)); }
template <class T> COMPLL_FUNCTION T two_to(SignedOf<T> n) { return of_bits(UnsignedOf<T>((n + 127) << 23)); }
template <class T> COMPLL_FUNCTION T clip(T x, float low, float high) {
    const T l = splat<T>(low), h = splat<T>(high);
    return select(gt(x, h), h, select(lt(x, l), l, x));
}
template <class T, int N> COMPLL_FUNCTION T polynomial(T x, const float (&c)[N]) {
    T value = splat<T>(c[N - 1]);
    for (int i = N - 2; i >= 0; --i) value = value * x + splat<T>(c[i]);
    return value;
}

// e^(r + rest) * 2^n; the scaling rounds once, also where the result is denormal.
template <class T> COMPLL_FUNCTION T power(T x, T r, T rest, T n) {
    constexpr float EXP[] = {0x1p-1f, 0x1.5554dcp-3f, 0x1.5554b8p-5f, 0x1.120cdap-7f, 0x1.6d773cp-10f};
    const T p = splat<T>(1.0f) + (r + ((r * r) * polynomial(r, EXP) + rest));
    const SignedOf<T> k = whole(select(ne(x, x), splat<T>(0.0f), n)), half = k >> 1;
    return select(ne(x, x), x, T((p * two_to<T>(half)) * two_to<T>(k - half)));
}
template <class T> COMPLL_FUNCTION T exp_(T x) {
    const T y = clip(x, -104.0f, 89.0f), n = round_(T(y * splat<T>(0x1.715476p+0f)));
    const T high = y - n * splat<T>(0.693359375f), low = n * splat<T>(-0x1.bd0106p-13f), r = high - low;
    return power(x, r, T((high - r) - low), n);
}
template <class T> COMPLL_FUNCTION T exp2_(T x) {
    const T y = clip(x, -151.0f, 128.0f), n = round_(y), f = y - n, t = top(f);
    const T a = t * splat<T>(0x1.62ep-1f), b = t * splat<T>(0x1.0bfbe8p-15f) + (f - t) * splat<T>(0x1.62e43p-1f);
    const T r = a + b;
    return power(x, r, T((a - r) + b), n);
}

// x = (1 + f) * 2^e with 1 + f from sqrt(1/2) to sqrt(2)
template <class T> COMPLL_FUNCTION void split(T x, T& f, T& e) {
    const auto tiny = lt(x, splat<T>(0x1p-126f));
    const UnsignedOf<T> bits = bits_of(select(tiny, T(x * splat<T>(0x1p23f)), x));
    const SignedOf<T> k = SignedOf<T>(bits - 0x3f3504f3u) >> 23;
    f = of_bits(UnsignedOf<T>(bits - (UnsignedOf<T>(k) << 23))) - splat<T>(1.0f);
    e = real(SignedOf<T>(k - select(tiny, splat<SignedOf<T>>(23), splat<SignedOf<T>>(0))));
}
template <class T> COMPLL_FUNCTION T at_the_edges(T x, T value) {
    const T zero = splat<T>(0.0f), inf = splat<T>(__builtin_inff());
    const T real_or_nan = select(ne(x, x), x, select(lt(x, zero), splat<T>(__builtin_nanf("")), value));
    return select(eq(x, zero), T(zero - inf), select(eq(x, inf), x, real_or_nan));
}
template <class T> COMPLL_FUNCTION T log_polynomial(T f) {
    constexpr float LOG[] = {0x1.555548p-2f, -0x1.000006p-2f, 0x1.99a4b6p-3f, -0x1.555c4ep-3f, 0x1.233766p-3f,
                             -0x1.fc220ep-4f, 0x1.e6f08cp-4f, -0x1.de3bf8p-4f, 0x1.14573ep-4f};
    return polynomial(f, LOG);
}
template <class T> COMPLL_FUNCTION T log_(T x) {
    T f, e;
    split(x, f, e);
    const T square = f * f;
    const T t = ((f * square) * log_polynomial(f) + e * splat<T>(-0x1.bd0106p-13f)) - splat<T>(0.5f) * square;
    return at_the_edges(x, T((f + t) + e * splat<T>(0.693359375f)));
}
template <class T> COMPLL_FUNCTION T log2_(T x) {
    T f, e;
    split(x, f, e);
    const T square = f * f, half = splat<T>(0.5f) * square, high = top(T(f - half));
    const T low = ((f - high) - half) + (f * square) * log_polynomial(f);
    const T parts = (low + high) * splat<T>(-0x1.7135a8p-13f) + low * splat<T>(0x1.716p+0f);
    return at_the_edges(x, T((parts + high * splat<T>(0x1.716p+0f)) + e));
}

}  // namespace compll
