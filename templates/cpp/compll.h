// The runtime of generated C++: lanes, scalar functions, conversions, random numbers, packing, reduction.
//
// A tile is 1024 elements = 8 rows x 128 lanes.  A kernel works on 16 lanes at a time, in vector types of
// GCC and Clang, never by hoping that a loop is vectorised.  Every function is overloaded for scalars and
// lanes; each does exactly what the language's reference says, so there is no fast-math and no FMA.
#pragma once

#include <cstdint>
#include <cstring>
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
template <class T> inline T shift_left(T a, T n) {
    if constexpr (std::is_arithmetic_v<T>) return shift_left_one(a, n);
    else return each<T>([&](int j) { return shift_left_one(a[j], n[j]); });
}
template <class T> inline T shift_right(T a, T n) {
    if constexpr (std::is_arithmetic_v<T>) return shift_right_one(a, n);
    else return each<T>([&](int j) { return shift_right_one(a[j], n[j]); });
}
template <class T> inline T greater(T a, T b) { return select(either(gt(a, b), ne(a, a)), a, b); }
template <class T> inline T smaller(T a, T b) { return select(either(lt(a, b), ne(a, a)), a, b); }

inline uint32_t bits_of(float x) { uint32_t b; std::memcpy(&b, &x, 4); return b; }
inline float of_bits(uint32_t b) { float x; std::memcpy(&x, &b, 4); return x; }
inline UInt32 bits_of(Float x) { return (UInt32)x; }
inline Float of_bits(UInt32 b) { return (Float)b; }
template <class T> inline T canonical(T x) {  // the one NaN that is ever written
    if constexpr (std::is_same_v<T, float>) return x != x ? of_bits(0x7fc00000u) : x;
    else if constexpr (std::is_same_v<T, Float>) return select(ne(x, x), of_bits(splat<UInt32>(0x7fc00000u)), x);
    else return x;
}
inline uint32_t float_bits(float x) { return bits_of(canonical(x)); }
inline UInt32 float_bits(Float x) { return bits_of(canonical(x)); }
inline float bits_float(uint32_t x) { return of_bits(x); }
inline Float bits_float(UInt32 x) { return of_bits(x); }

template <class T> inline T absolute(T x) {
    if constexpr (std::is_same_v<T, float>) return of_bits(bits_of(x) & 0x7fffffffu);
    else if constexpr (std::is_same_v<T, Float>) return of_bits(bits_of(x) & 0x7fffffffu);
    else return select(lt(x, splat<T>(0)), T(splat<T>(0) - x), x);
}
#define COMPLL_ROUNDING(NAME, BUILTIN)                                                  \
    template <class T> inline T NAME(T x) {                                             \
        if constexpr (std::is_same_v<T, float>) return BUILTIN(x);                      \
        else if constexpr (std::is_same_v<T, Float>) return each<Float>([&](int j) { return BUILTIN(x[j]); }); \
        else return x;                                                                  \
    }
COMPLL_ROUNDING(floor_, __builtin_floorf)
COMPLL_ROUNDING(ceil_, __builtin_ceilf)
COMPLL_ROUNDING(round_, __builtin_rintf)
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
    else return each<Int32>([&](int j) { return popcount_one(std::make_unsigned_t<Element<T>>(x[j])); });
}

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
template <class To, class From> inline To saturate(From x, Element<To> low, Element<To> high) {
    if constexpr (std::is_same_v<To, Int32> && std::is_same_v<From, Float>) {
        if (low >= -(1 << 24) && high <= (1 << 24)) {  // both bounds are floats: clamp there, then convert
            const Float l = splat<Float>(low), h = splat<Float>(high);
            Float y = select(ne(x, x), Float{}, x);
            y = select(lt(y, l), l, y);
            y = select(gt(y, h), h, y);
            return __builtin_convertvector(y, Int32);
        }
    }
    if constexpr (std::is_same_v<To, From>) {
        const To l = splat<To>(low), h = splat<To>(high);
        const To y = select(lt(x, l), l, x);
        return select(gt(y, h), h, y);
    }
    return each<To>([&](int j) { return saturate_one<Element<To>>(x[j], low, high); });
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
inline Int32 expand(const uint8_t* p) {
#if defined(__AVX512F__)
    using Bytes = char __attribute__((vector_size(16), aligned(1), may_alias));
    return (Int32)__builtin_ia32_pmovzxbd512_mask(*(const Bytes*)p, (Int32){}, -1);
#else
    using Half = uint16_t __attribute__((vector_size(32)));
    return __builtin_convertvector(__builtin_convertvector(*(const Loose<uint8_t, 16>::type*)p, Half), Int32);
#endif
}
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
template <int W> inline void pack_tile(uint8_t* out, const uint8_t* codes) {
    for (int g = 0; g < TILE / 8; ++g) {
        uint64_t x;
        std::memcpy(&x, codes + 8 * g, 8);
        x = squeeze<W>(x);
        std::memcpy(out + W * g, &x, W);
    }
}
template <int W> inline void unpack_tile(uint8_t* codes, const uint8_t* in) {
    for (int g = 0; g < TILE / 8; ++g) {
        uint64_t x = 0;
        std::memcpy(&x, in + W * g, W);
        x = spread<W>(x);
        std::memcpy(codes + 8 * g, &x, 8);
    }
}
template <int W, bool FULL> inline void pack(uint8_t* out, const uint8_t* codes, int count) {
    if constexpr (FULL) return pack_tile<W>(out, codes);
    uint8_t whole[LANES * W];
    pack_tile<W>(whole, codes);
    std::memcpy(out, whole, (count * W + 7) / 8);
}
template <int W, bool FULL> inline void unpack(uint8_t* codes, const uint8_t* in, int count) {
    if constexpr (FULL) return unpack_tile<W>(codes, in);
    uint8_t whole[LANES * W] = {};
    std::memcpy(whole, in, (count * W + 7) / 8);
    unpack_tile<W>(codes, whole);
}

// --- random numbers: Philox4x32-10 ------------------------------------------------------------------------
inline void multiply(uint32_t a, uint32_t m, uint32_t& high, uint32_t& low) {
    const uint64_t p = uint64_t(a) * m;
    high = uint32_t(p >> 32);
    low = uint32_t(p);
}
using Words = uint64_t __attribute__((vector_size(64)));
inline void multiply(UInt32 a, uint32_t m, UInt32& high, UInt32& low) {
#if defined(__AVX512F__)
    using Half = int32_t __attribute__((vector_size(64)));
    using Wide = long long __attribute__((vector_size(64)));
    const Half by = (Half)(Words{} + m);
    const UInt32 even = (UInt32)__builtin_ia32_pmuludq512_mask((Half)a, by, Wide{}, 0xff);
    const UInt32 odd = (UInt32)__builtin_ia32_pmuludq512_mask((Half)((Words)a >> 32), by, Wide{}, 0xff);
#else
    const UInt32 even = (UInt32)(((Words)a & 0xffffffffull) * uint64_t(m));
    const UInt32 odd = (UInt32)(((Words)a >> 32) * uint64_t(m));
#endif
    low = __builtin_shuffle(even, odd, UInt32{0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30});
    high = __builtin_shuffle(even, odd, UInt32{1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31});
}
template <class U> inline void philox(U (&c)[4], uint64_t seed) {
    uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        U h0, l0, h1, l1;
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
// The 128-lane group of a tile has p = tile*128 + lane; 16 lanes begin at `lane`.
template <class U> inline void counter(U (&c)[4], int64_t tile, int lane, uint32_t site, uint32_t part) {
    const int64_t p = tile * LANES + lane;  // 16 lanes never cross a multiple of 2^32
    c[0] = splat<U>(uint32_t(p));
    if constexpr (!std::is_arithmetic_v<U>) c[0] += U{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    c[1] = splat<U>(uint32_t(uint64_t(p) >> 32));
    c[2] = splat<U>(site);
    c[3] = splat<U>(part);
}
inline void random_words(UInt32 (&rows)[ROWS], uint64_t seed, uint32_t site, int64_t tile, int lane) {
    for (uint32_t part = 0; part < 2; ++part) {
        UInt32 c[4];
        counter(c, tile, lane, site, part);
        philox(c, seed);
        for (int w = 0; w < 4; ++w) rows[4 * part + w] = c[w];
    }
}
inline void random_halves(UInt32 (&rows)[ROWS], uint64_t seed, uint32_t site, int64_t tile, int lane) {
    UInt32 c[4];
    counter(c, tile, lane, site, 0);
    philox(c, seed);
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
inline Float as_float(UInt32 w) { return __builtin_convertvector((Int32)w, Float); }  // below 2^31
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

// --- the one order of reduction -------------------------------------------------------------------------------
// Lane j < w becomes f(a[j], a[j + w]) for w = 64, 32, ..., 1; lanes from `lanes` on are absent.
template <bool FULL, class V, class F> inline Element<V> fold(V (&a)[BLOCKS], int lanes, F f) {
    using T = Element<V>;
    if constexpr (FULL) {
        for (int w = BLOCKS / 2; w; w /= 2)
            for (int k = 0; k < w; ++k) a[k] = f(a[k], a[k + w]);
        T x[WIDTH];
        for (int j = 0; j < WIDTH; ++j) x[j] = a[0][j];
        for (int w = WIDTH / 2; w; w /= 2)
            for (int j = 0; j < w; ++j) x[j] = f(x[j], x[j + w]);
        return x[0];
    } else {
        T x[LANES];
        for (int k = 0; k < BLOCKS; ++k)
            for (int j = 0; j < WIDTH; ++j) x[k * WIDTH + j] = a[k][j];
        for (int w = LANES / 2; w; w /= 2)
            for (int j = 0; j < w && j + w < lanes; ++j) x[j] = f(x[j], x[j + w]);
        return x[0];
    }
}
template <bool FULL, class T, class F> inline T reduce_tile(const T* x, int count, F f) {
    using V = Lanes<T>;
    V a[BLOCKS];
    for (int k = 0; k < BLOCKS; ++k)
        for (int row = 0; row < ROWS; ++row) {
            const int at = row * LANES + k * WIDTH;
            if (!FULL && at >= count) break;
            const int live = FULL ? WIDTH : count - at < WIDTH ? count - at : WIDTH;
            const V v = load<V, FULL>(x + at, live);
            if (row == 0) a[k] = v;
            else a[k] = FULL ? f(a[k], v) : select(first_lanes(live), f(a[k], v), a[k]);
        }
    return fold<FULL>(a, count < LANES ? count : LANES, f);
}
// Reduce the results of `count` tiles, in place, by the same rule.
template <class T, class F> inline T reduce_tiles(T* x, int64_t count, F f) {
    while (count > 1) {
        const int64_t tiles = (count + TILE - 1) / TILE;
        for (int64_t t = 0; t < tiles; ++t) {
            const int64_t rest = count - t * TILE;
            x[t] = rest >= TILE ? reduce_tile<true>(x + t * TILE, TILE, f) : reduce_tile<false>(x + t * TILE, int(rest), f);
        }
        count = tiles;
    }
    return x[0];
}

// --- entry ----------------------------------------------------------------------------------------------------
inline Mask not_finite(Float x) { return mask((Int32)(bits_of(x) & 0x7f800000u) == 0x7f800000); }
inline bool any(Mask m) {
    int32_t some = 0;
    for (int j = 0; j < WIDTH; ++j) some |= m[j];
    return some != 0;
}
inline int64_t align(int64_t at, int64_t to) { return (at + to - 1) / to * to; }

// Rounding to nearest and denormals kept, whatever the calling thread has set; restored at the end.
struct Arithmetic {
#if defined(__SSE__)
    unsigned saved = __builtin_ia32_stmxcsr();
    Arithmetic() { __builtin_ia32_ldmxcsr(0x1f80); }
    ~Arithmetic() { __builtin_ia32_ldmxcsr(saved); }
#endif
};
// Run `work(tile)` for every tile; small vectors stay on the calling thread.
template <class F> inline void for_tiles(int64_t tiles, int threads, F work) {
    constexpr int64_t CHUNK = 64;
    if (threads <= 1 || tiles <= CHUNK) {
        Arithmetic arithmetic;
        for (int64_t tile = 0; tile < tiles; ++tile) work(tile);
        return;
    }
#pragma omp parallel num_threads(threads)
    {
        Arithmetic arithmetic;
#pragma omp for schedule(dynamic, 1)
        for (int64_t chunk = 0; chunk < (tiles + CHUNK - 1) / CHUNK; ++chunk)
            for (int64_t tile = chunk * CHUNK; tile < tiles && tile < (chunk + 1) * CHUNK; ++tile) work(tile);
    }
}

enum Status : int32_t { OK = 0, NOT_FINITE = 1, OUT_OF_RANGE = -1, REFUSED = -2, BAD_BUFFER = -3 };

}  // namespace compll

// The C ABI: a call takes a table of items, so that a single call is a batch of one.
extern "C" struct compll_item {
    float* gradient;        // encode: input; decode, decode_add: output
    uint8_t* payload;       // encode: output of `capacity` bytes; otherwise input of `length` bytes
    int64_t n;              // elements of the gradient
    int64_t capacity;
    int64_t length;         // encode: set to the payload's true length
    const float* const* state;   // one pointer a state vector, in the order of the program
    float* const* new_state;     // may be the same
    uint64_t seed, shared_seed;
    float scale;            // decode_add
    int32_t status;         // 0, 1: the input was not finite, or negative: an error
};
#define COMPLL_EXPORT extern "C" __attribute__((visibility("default")))
