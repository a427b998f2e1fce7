// What differs between the three compilers of one source: nvcc, NVRTC (which has no standard headers), and a
// C++ compiler that runs the kernels on the CPU (sim.h).
#pragma once

#if defined(__CUDACC_RTC__)
using int8_t = signed char;
using int16_t = short;
using int32_t = int;
using int64_t = long long;
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;
#define INT64_C(x) x##LL
#define UINT64_C(x) x##ULL
#define INT64_MAX INT64_C(9223372036854775807)
#define INT64_MIN (-INT64_MAX - 1)
#define __builtin_inff() __int_as_float(0x7f800000)
#define __builtin_nanf(text) __int_as_float(0x7fc00000)
#else
#include <cstdint>
#endif

#if !defined(__CUDACC__)
#include "sim.h"
#endif

#if defined(__CUDACC__)
#define COMPLL_SHARED(TYPE, NAME, COUNT) __shared__ TYPE NAME[COUNT]
#define COMPLL_PARAMETER const __grid_constant__  // of a struct by value: threads read it where the launch has put it
#else
#define COMPLL_PARAMETER const
#endif
#define COMPLL_DEVICE __device__ __forceinline__
#define COMPLL_BOTH __host__ __device__ __forceinline__  // for what the host works out too

namespace compll {

constexpr int TILE = 1024, ROWS = 8, LANES = 128, QUAD = 4, WARP = 32;
constexpr int TILE_THREADS = 128, ITEM_THREADS = 512;  // of a block that works on tiles, or on one item
constexpr unsigned ALL = 0xffffffffu;  // every lane of a warp takes part in every exchange

enum Status : int32_t { OK = 0, NOT_FINITE = 1, OUT_OF_RANGE = -1, REFUSED = -2, BAD_BUFFER = -3, NO_LAUNCH = -4 };

template <class A, class B> struct Same { static constexpr bool value = false; };
template <class A> struct Same<A, A> { static constexpr bool value = true; };
template <class T> constexpr bool is_float = Same<T, float>::value;
template <class T> constexpr bool is_signed = T(-1) < T(0);
template <class T> struct WrapsIn { using type = T; };
template <> struct WrapsIn<int32_t> { using type = uint32_t; };
template <> struct WrapsIn<int64_t> { using type = uint64_t; };
template <class T> using Unsigned = typename WrapsIn<T>::type;

}  // namespace compll
