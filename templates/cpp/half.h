// half and bfloat16: 16 bits in memory, float32 in arithmetic.  Widening is exact; rounding is to nearest even, past
// the greatest number to infinity, denormals are kept, and every NaN becomes the same bits.
//
// Both ways in integer operations and one sum, for scalars and lanes alike, which gives the same bits everywhere:
// the instructions of processors for bfloat16 flush denormals.  The runtimes of C++ (after lanes.h) and of CUDA
// (after scalar.cuh) both include this text.
#pragma once

namespace compll {

struct half {  // 1 bit of sign, 5 of exponent (2^-14 .. 2^15), 10 of mantissa
    uint16_t bits;
    half() = default;
    COMPLL_FUNCTION explicit half(float x) : bits(uint16_t(rounded(x))) {}
    COMPLL_FUNCTION operator float() const { return widened<float>(bits); }

    template <class T> static COMPLL_FUNCTION T widened(UnsignedOf<T> code) {
        using U = UnsignedOf<T>;
        const U sign = (code & 0x8000u) << 16, rest = (code & 0x7fffu) << 13, exponent = rest & 0x0f800000u;
        const U normal = rest + (112u << 23);
        const U denormal = bits_of(T(of_bits(U(rest + (113u << 23))) - splat<T>(0x1p-14f)));
        const U top = rest | 0x7f800000u;  // infinity or NaN
        const U magnitude = select(eq(exponent, splat<U>(0x0f800000u)), top, normal);
        return of_bits(U(sign | select(eq(exponent, splat<U>(0u)), denormal, magnitude)));
    }
    template <class T> static COMPLL_FUNCTION UnsignedOf<T> rounded(T x) {
        using U = UnsignedOf<T>;
        const U all = bits_of(x), magnitude = all & 0x7fffffffu, sign = (all >> 16) & 0x8000u;
        const U normal = (magnitude + (0xfffu - (112u << 23)) + ((magnitude >> 13) & 1u)) >> 13;
        const U denormal = bits_of(T(of_bits(magnitude) + splat<T>(0.5f))) - bits_of(0.5f);  // the sum rounds
        U code = select(lt(magnitude, splat<U>(113u << 23)), denormal, normal);
        code = sign | select(lt(magnitude, splat<U>(143u << 23)), code, splat<U>(0x7c00u));
        return select(ne(x, x), splat<U>(0x7e00u), code);
    }
};

struct bfloat16 {  // the upper half of a float32
    uint16_t bits;
    bfloat16() = default;
    COMPLL_FUNCTION explicit bfloat16(float x) : bits(uint16_t(rounded(x))) {}
    COMPLL_FUNCTION operator float() const { return widened<float>(bits); }

    template <class T> static COMPLL_FUNCTION T widened(UnsignedOf<T> code) { return of_bits(UnsignedOf<T>(code << 16)); }
    template <class T> static COMPLL_FUNCTION UnsignedOf<T> rounded(T x) {
        using U = UnsignedOf<T>;
        const U all = bits_of(x), code = (all + 0x7fffu + ((all >> 16) & 1u)) >> 16;
        return select(ne(x, x), splat<U>(0x7fc0u), code);
    }
};

// What a float32 is once it has been stored as H.
template <class H, class T> COMPLL_FUNCTION T through(T x) { return H::template widened<T>(H::template rounded<T>(x)); }

}  // namespace compll
