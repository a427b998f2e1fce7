// Vectors of GCC that fit a register of the machine, and pairs of halves where one does not.
//
// Compilers take a vector type that is larger than a register apart element by element.  So what works on vectors is
// written once for a register, where operators are the compiler's own, and goes through halves everywhere else.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

namespace compll {

#if defined(__AVX512DQ__)
constexpr int REGISTER = 64;  // bytes
#elif defined(__AVX2__)
constexpr int REGISTER = 32;
#else
constexpr int REGISTER = 16;
#endif
#define COMPLL_ALWAYS __attribute__((always_inline)) inline
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define COMPLL_SHUFFLES  // GCC 12
#endif
#endif

template <class T, int N> struct AsWhole { using type __attribute__((vector_size(N * sizeof(T)))) = T; };
template <class T, int N> using Whole = typename AsWhole<T, N>::type;
template <class T, int N> struct Halves;
template <class T, int N> struct AsHalves { using type = Halves<T, N>; };
// As many elements of less than 32 bits are together as of 32.
template <class T, int N> constexpr bool FITS = N * (sizeof(T) < 4 ? 4 : sizeof(T)) <= REGISTER;
template <class T, int N> using Vector = typename std::conditional_t<FITS<T, N>, AsWhole<T, N>, AsHalves<T, N>>::type;
template <class V> auto element_of(const V& x) {
    if constexpr (std::is_arithmetic_v<V>) return x;
    else return x[0];
}
template <class V> using Element = decltype(element_of(std::declval<V>()));
template <class V> constexpr int COUNT = sizeof(V) / sizeof(Element<V>);
template <class V> using Half = Vector<Element<V>, COUNT<V> / 2>;
template <class V> constexpr bool IS_HALVES = std::is_class_v<V>;

template <class T, int N> struct Halves {
    Vector<T, N / 2> low, high;
    COMPLL_ALWAYS T operator[](int j) const { return j < N / 2 ? low[j] : high[j - N / 2]; }
    template <class U, int M> COMPLL_ALWAYS explicit operator Halves<U, M>() const {  // the same bits
        return {(Vector<U, M / 2>)low, (Vector<U, M / 2>)high};
    }
};
template <class T> struct Itself { using type = T; };
template <class T> using Scalar = typename Itself<T>::type;  // it follows from the other operand
#define COMPLL_OPERATOR(OP)                                                                                             \
    template <class T, int N> COMPLL_ALWAYS Halves<T, N> operator OP(const Halves<T, N>& a, const Halves<T, N>& b) {    \
        return {a.low OP b.low, a.high OP b.high};                                                                      \
    }                                                                                                                   \
    template <class T, int N> COMPLL_ALWAYS Halves<T, N> operator OP(const Halves<T, N>& a, Scalar<T> b) {              \
        return {a.low OP b, a.high OP b};                                                                               \
    }                                                                                                                   \
    template <class T, int N, class B> COMPLL_ALWAYS Halves<T, N>& operator OP##=(Halves<T, N>& a, const B& b) {        \
        return a = a OP b;                                                                                              \
    }
COMPLL_OPERATOR(+)
COMPLL_OPERATOR(-)
COMPLL_OPERATOR(*)
COMPLL_OPERATOR(/)
COMPLL_OPERATOR(&)
COMPLL_OPERATOR(|)
COMPLL_OPERATOR(^)
COMPLL_OPERATOR(<<)
COMPLL_OPERATOR(>>)
#undef COMPLL_OPERATOR
template <class T, int N> COMPLL_ALWAYS Halves<T, N> operator-(const Halves<T, N>& a) { return {-a.low, -a.high}; }
template <class T, int N> COMPLL_ALWAYS Halves<T, N> operator~(const Halves<T, N>& a) { return {~a.low, ~a.high}; }

// One half of a vector, and a vector of two: also of what lies in a single register.
template <int FROM, class V, int... J> COMPLL_ALWAYS Half<V> some_of(const V& x, std::integer_sequence<int, J...>) {
#if defined(COMPLL_SHUFFLES)
    return __builtin_shufflevector(x, x, (FROM + J)...);
#else
    return Half<V>{x[FROM + J]...};
#endif
}
template <class V, int... J> COMPLL_ALWAYS V joined(const Half<V>& a, const Half<V>& b, std::integer_sequence<int, J...>) {
#if defined(COMPLL_SHUFFLES)
    return __builtin_shufflevector(a, b, J..., (COUNT<V> / 2 + J)...);
#else
    return V{a[J]..., b[J]...};
#endif
}
template <class V> constexpr auto HALF_OF = std::make_integer_sequence<int, COUNT<V> / 2>();
template <class V> COMPLL_ALWAYS Half<V> low(const V& x) {
    if constexpr (IS_HALVES<V>) return x.low;
    else return some_of<0>(x, HALF_OF<V>);
}
template <class V> COMPLL_ALWAYS Half<V> high(const V& x) {
    if constexpr (IS_HALVES<V>) return x.high;
    else return some_of<COUNT<V> / 2>(x, HALF_OF<V>);
}
template <class V> COMPLL_ALWAYS V join(const Half<V>& a, const Half<V>& b) {
    if constexpr (IS_HALVES<V>) return {a, b};
    else return joined<V>(a, b, HALF_OF<V>);
}
template <class V, class T> COMPLL_ALWAYS V splat(T x) {
    if constexpr (std::is_arithmetic_v<V>) return static_cast<V>(x);
    else if constexpr (IS_HALVES<V>) return {splat<Half<V>>(x), splat<Half<V>>(x)};
    else return static_cast<Element<V>>(x) - V{};  // x - 0 is x, also for -0
}
// f(0), f(1), f(2), ...
template <class V, class F, int... J> COMPLL_ALWAYS V listed(F f, std::integer_sequence<int, J...>) { return V{Element<V>(f(J))...}; }
template <class V, class F> COMPLL_ALWAYS V listed(F f) { return listed<V>(f, std::make_integer_sequence<int, COUNT<V>>()); }
template <class V> COMPLL_ALWAYS V numbers() { return listed<V>([](int j) { return j; }); }
template <class V> COMPLL_ALWAYS V evens(const V& a, const V& b) {  // the elements 0, 2, 4, ... of two registers
    using Place = std::conditional_t<sizeof(Element<V>) == 1, int8_t, std::conditional_t<sizeof(Element<V>) == 2, int16_t, int32_t>>;
    return __builtin_shuffle(a, b, numbers<Whole<Place, COUNT<V>>>() * 2);
}
// What `f` makes of the registers of some vectors.
template <class To, class F, class... V> COMPLL_ALWAYS To by_register(F f, const V&... x) {
    if constexpr ((IS_HALVES<V> || ...)) return join<To>(by_register<Half<To>>(f, low(x)...), by_register<Half<To>>(f, high(x)...));
    else return f(x...);
}

}  // namespace compll
