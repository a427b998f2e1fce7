// A warp and a tile: thread t has lanes 4t .. 4t+3 of each of the eight rows.
//
// FULL says that the tile is whole and every pointer is a multiple of 16: then a row of a thread is one access of
// 16 bytes.  Otherwise elements are read and written one by one, and those behind `count` not at all.
#pragma once

#include "scalar.cuh"

namespace compll {

template <class T> struct alignas(sizeof(T) * QUAD < 16 ? sizeof(T) * QUAD : 16) Quad {
    T at[QUAD];
};
template <class T> struct Rows {
    Quad<T> row[ROWS];
};
COMPLL_BOTH bool is_aligned(const void* p) { return (reinterpret_cast<uint64_t>(p) & 15) == 0; }

template <bool FULL, class T> COMPLL_DEVICE Quad<T> load_row(const T* tile, int row, int thread, int count) {
    const int at = row * LANES + QUAD * thread;
    if constexpr (FULL) {
        return *reinterpret_cast<const Quad<T>*>(tile + at);
    } else {
        Quad<T> out;
#pragma unroll
        for (int j = 0; j < QUAD; ++j) out.at[j] = at + j < count ? tile[at + j] : T(0);
        return out;
    }
}
// A row of a block of `count` elements; WIDE: their number is a multiple of 4, and they begin at one of 16 bytes.
template <bool WIDE, class T> COMPLL_DEVICE Quad<T> load_some(const T* block, int row, int thread, int count) {
    if constexpr (WIDE) return row * LANES + QUAD * thread < count ? load_row<true>(block, row, thread, count) : Quad<T>{};
    else return load_row<false>(block, row, thread, count);
}
template <bool FULL, class T> COMPLL_DEVICE Rows<T> load(const T* tile, int thread, int count) {
    Rows<T> out;  // all rows before any is used: eight independent accesses
#pragma unroll
    for (int row = 0; row < ROWS; ++row) out.row[row] = load_row<FULL>(tile, row, thread, count);
    return out;
}
template <bool FULL, class T> COMPLL_DEVICE void store(T* tile, const Quad<T>& x, int row, int thread, int count) {
    const int at = row * LANES + QUAD * thread;
    if constexpr (FULL) {
        *reinterpret_cast<Quad<T>*>(tile + at) = x;
    } else {
#pragma unroll
        for (int j = 0; j < QUAD; ++j)
            if (at + j < count) tile[at + j] = x.at[j];
    }
}

// --- sub-byte fields: element i has bits i*W .. i*W+W-1 of the little-endian bit string --------------------
// A thread's four codes of a row are one group of 4W bits.  Eight neighbouring threads hold, of their 32 lanes,
// eight rows of eight groups: once transposed, thread m of them has row m's 32 codes, which are W whole words.
template <int W> struct Codes {
    static constexpr int PER = W == 1 ? 8 : W == 2 ? 4 : W <= 4 ? 2 : 1;  // groups in one register
    static constexpr int SLOT = 32 / PER, REGISTERS = ROWS / PER, WORDS = W;
    uint32_t held[REGISTERS];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < REGISTERS; ++i) held[i] = 0;
    }
    __device__ __forceinline__ void put(int row, int j, uint32_t code) { held[row / PER] |= code << (row % PER * SLOT + j * W); }
    __device__ __forceinline__ uint32_t get(int row, int j) const {
        return (held[row / PER] >> (row % PER * SLOT + j * W)) & ((1u << W) - 1);
    }
    __device__ __forceinline__ uint32_t group(int row) const { return held[row / PER] >> (row % PER * SLOT) & GROUP; }
    static constexpr uint32_t GROUP = uint32_t((uint64_t(1) << 4 * W) - 1);

    // The slots of a register whose row has bit `step` clear.
    __host__ __device__ static constexpr uint32_t low_slots(int step) {
        uint64_t out = 0;
        for (int s = 0; s < PER; ++s)
            if ((s & step) == 0) out |= ((uint64_t(1) << SLOT) - 1) << (s * SLOT);
        return uint32_t(out);
    }
    template <int STEP> __device__ __forceinline__ void exchange(int thread) {
        const bool upper = (thread & STEP) != 0;
        if constexpr (STEP >= PER) {
            constexpr int APART = STEP / PER;
#pragma unroll
            for (int i = 0; i < REGISTERS; ++i) {
                if (i & APART) continue;
                const uint32_t got = __shfl_xor_sync(ALL, upper ? held[i] : held[i + APART], STEP);
                held[i] = upper ? got : held[i];
                held[i + APART] = upper ? held[i + APART] : got;
            }
        } else {
            constexpr uint32_t LOW = low_slots(STEP);
            constexpr int SHIFT = STEP * SLOT;
#pragma unroll
            for (int i = 0; i < REGISTERS; ++i) {
                const uint32_t got = __shfl_xor_sync(ALL, upper ? held[i] << SHIFT : held[i] >> SHIFT, STEP);
                held[i] = upper ? (held[i] & ~LOW) | (got & LOW) : (held[i] & LOW) | (got & ~LOW);
            }
        }
    }
    __device__ __forceinline__ void transpose(int thread) {  // its own inverse
        exchange<4>(thread);
        exchange<2>(thread);
        exchange<1>(thread);
    }
};
// The first of the W words that a thread has after the transposition.
template <int W> COMPLL_DEVICE int first_word(int thread) { return (thread % 8 * 4 + thread / 8) * W; }

template <int W, bool FULL> COMPLL_DEVICE void pack(uint8_t* tile, Codes<W> codes, int thread, int count) {
    codes.transpose(thread);
    uint32_t words[W] = {};
#pragma unroll
    for (int m = 0; m < 8; ++m) {
        const uint32_t group = codes.group(m);
        words[m * 4 * W / 32] |= group << (m * 4 * W % 32);
        if (m * 4 * W % 32 + 4 * W > 32) words[m * 4 * W / 32 + 1] |= group >> (32 - m * 4 * W % 32);
    }
    const int first = first_word<W>(thread), bytes = FULL ? LANES * W : (count * W + 7) / 8;
#pragma unroll
    for (int i = 0; i < W; ++i) {
        const int at = 4 * (first + i);
        if (FULL || at + 4 <= bytes) {
            *reinterpret_cast<uint32_t*>(tile + at) = words[i];
        } else {
            for (int b = 0; at + b < bytes; ++b) tile[at + b] = uint8_t(words[i] >> (8 * b));
        }
    }
}
template <int W, bool FULL> COMPLL_DEVICE Codes<W> unpack(const uint8_t* tile, int thread, int count) {
    const int first = first_word<W>(thread), bytes = FULL ? LANES * W : (count * W + 7) / 8;
    uint32_t words[W];
#pragma unroll
    for (int i = 0; i < W; ++i) {
        const int at = 4 * (first + i);
        if (FULL || at + 4 <= bytes) {
            words[i] = *reinterpret_cast<const uint32_t*>(tile + at);
        } else {
            words[i] = 0;
            for (int b = 0; at + b < bytes; ++b) words[i] |= uint32_t(tile[at + b]) << (8 * b);
        }
    }
    Codes<W> codes;
    codes.clear();
#pragma unroll
    for (int m = 0; m < 8; ++m) {
        uint32_t group = words[m * 4 * W / 32] >> (m * 4 * W % 32);
        if (m * 4 * W % 32 + 4 * W > 32) group |= words[m * 4 * W / 32 + 1] << (32 - m * 4 * W % 32);
        codes.put(m, 0, group & Codes<W>::GROUP);
    }
    codes.transpose(thread);
    return codes;
}

// The codes of a thread in a row of a block that begins at element `first`, maybe inside a byte.
template <int W> COMPLL_DEVICE Quad<uint8_t> codes_of_row(const uint8_t* codes, int64_t first, int row, int thread, int count) {
    Quad<uint8_t> out = {};
#pragma unroll
    for (int j = 0; j < QUAD; ++j) {
        const int at = row * LANES + QUAD * thread + j;
        if (at >= count) break;
        const int64_t bit = (first + at) * W;
        const int shift = int(bit % 8);
        unsigned both = codes[bit / 8];
        if (shift + W > 8) both |= unsigned(codes[bit / 8 + 1]) << 8;
        out.at[j] = uint8_t(both >> shift & ((1u << W) - 1));
    }
    return out;
}

}  // namespace compll
