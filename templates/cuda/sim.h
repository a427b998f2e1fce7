// CUDA's kernels on a CPU, for tests: the threads of a block are fibers that take turns.
//
// A fiber gives up its turn only where it waits for others: at __syncthreads for the block, at __syncwarp and
// the exchanges of a warp for the lanes of the mask.  The order of turns is the caller's choice; a kernel that
// is right gives the same in each.  Where no fiber can go on, or lanes that should meet do not call the same,
// the launch ends with a message; groups of one warp that meet at once are beyond it.  What this cannot show: races between blocks, and speed.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#define __global__ __attribute__((visibility("default")))
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

// --- fibers -----------------------------------------------------------------------------------------------------
#if defined(__x86_64__)
// Keep what the calling convention asks a function to keep, exchange the stack pointers, return on the other stack.
extern "C" __attribute__((visibility("hidden"))) void compll_fiber_switch(void** from, void* to);
asm(R"(
    .text
    .p2align 4
    .hidden compll_fiber_switch
    .globl compll_fiber_switch
    .type compll_fiber_switch, @function
compll_fiber_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size compll_fiber_switch, .-compll_fiber_switch
)");
namespace compll::sim {
struct Context {
    void* stack = nullptr;
    void start(char* memory, size_t size, void (*entry)()) {
        void** top = reinterpret_cast<void**>(memory + size) - 2;  // entered as if called: 8 beyond a multiple of 16
        *top = reinterpret_cast<void*>(entry);
        stack = top - 6;
        std::memset(stack, 0, 6 * sizeof(void*));
    }
    void switch_to(Context& to) { compll_fiber_switch(&stack, to.stack); }
};
}  // namespace compll::sim
#else
#include <ucontext.h>
namespace compll::sim {
struct Context {
    ucontext_t context;
    void start(char* memory, size_t size, void (*entry)()) {
        getcontext(&context);
        context.uc_stack.ss_sp = memory;
        context.uc_stack.ss_size = size;
        context.uc_link = nullptr;
        makecontext(&context, entry, 0);
    }
    void switch_to(Context& to) { swapcontext(&context, &to.context); }
};
}  // namespace compll::sim
#endif

namespace compll::sim {

constexpr size_t STACK = 64 << 10;
constexpr int LANE_COUNT = 32;

// Where fibers meet.  The last to arrive opens the gate by counting a new epoch.
struct Gate {
    int arrived = 0;
    uint64_t epoch = 0;
    unsigned mask = 0;
    const char* call = nullptr;  // what those who wait have called
};
struct Warp {
    Gate gate;
    uint64_t slots[2][LANE_COUNT];
};
struct Fiber {
    Context context;
    Gate* gate = nullptr;  // waits until this is past `epoch`
    uint64_t epoch = 0;
    bool done = false;
    int parity = 0;
    dim3 thread;
};
struct Block {
    int threads = 0, alive = 0;
    dim3 index, grid, size;
    Gate barrier;
    std::vector<Warp> warps;
    std::vector<Fiber> fibers;
    Context scheduler;
    Fiber* turn = nullptr;
    void (*body)(const void*) = nullptr;
    const void* argument = nullptr;
    const char* wrong = nullptr;
    std::map<const void*, std::unique_ptr<char[]>> shared;  // one piece of memory for each place that declares some
};
inline thread_local Block* block = nullptr;
inline thread_local char message[256];

inline int lane() { return int(block->turn->thread.x % LANE_COUNT); }
inline Warp& warp() { return block->warps[block->turn->thread.x / LANE_COUNT]; }
inline void wait() { block->turn->context.switch_to(block->scheduler); }
[[noreturn]] inline void fail(const char* call, const char* why) {
    std::snprintf(message, sizeof message, "%s of thread %u in block %u: %s", call, block->turn->thread.x, block->index.x, why);
    block->wrong = message;
    for (;;) wait();  // never given another turn
}
inline void meet(Gate& gate, const char* call, unsigned mask, int expected) {
    if (gate.arrived > 0 && (gate.call != call || gate.mask != mask)) fail(call, "others of its group wait in another call");
    gate.call = call;
    gate.mask = mask;
    if (++gate.arrived >= expected) {
        gate.arrived = 0;
        ++gate.epoch;
        return;
    }
    block->turn->gate = &gate;
    block->turn->epoch = gate.epoch;
    wait();
}
inline void meet_warp(const char* call, unsigned mask) {
    if (!(mask >> lane() & 1)) fail(call, "the mask leaves out the lane that calls");
    meet(warp().gate, call, mask, __builtin_popcount(mask));
}
// Every lane of the mask gives x; return what `source` gave.  Two sets of slots, used in turn, let the fast
// lanes begin the next exchange while the slow ones still read this one.
template <class T> T exchange(const char* call, unsigned mask, T x, int source) {
    static_assert(sizeof(T) <= 8, "an exchange moves at most 8 bytes");
    uint64_t* slots = warp().slots[block->turn->parity ^= 1];
    std::memcpy(&slots[lane()], &x, sizeof x);
    meet_warp(call, mask);
    if (!(mask >> source & 1)) fail(call, "it reads a lane that is not in the mask");
    std::memcpy(&x, &slots[source], sizeof x);
    return x;
}

// Every lane of the mask gives x; return the lanes whose x fits.
template <class T, class F> unsigned lanes_that(const char* call, unsigned mask, T x, F fits) {
    unsigned out = 0;
    const int slot = block->turn->parity ^ 1;
    exchange(call, mask, x, lane());
    for (int i = 0; i < LANE_COUNT; ++i) {
        if (!(mask >> i & 1)) continue;
        T other;
        std::memcpy(&other, &warp().slots[slot][i], sizeof other);
        if (fits(other)) out |= 1u << i;
    }
    return out;
}
// Memory of a block.  It holds nothing of use at first: a kernel that counts on zeros is found out.
template <class T> T* shared(const void* place, size_t count) {
    auto& memory = block->shared[place];
    if (memory == nullptr) {
        memory.reset(new char[count * sizeof(T)]);
        std::memset(memory.get(), 0xA5, count * sizeof(T));
    }
    return reinterpret_cast<T*>(memory.get());
}

inline void fiber_main() {
    block->body(block->argument);
    Fiber& me = *block->turn;
    me.done = true;
    --block->alive;
    Gate& gate = block->barrier;  // those that wait at the barrier wait no longer for this one
    if (gate.arrived > 0 && gate.arrived >= block->alive) {
        gate.arrived = 0;
        ++gate.epoch;
    }
    for (;;) wait();
}
inline int place(int order, int i, int count) {  // 0 ascending, 1 descending, 2 scattered
    if (order == 1) return count - 1 - i;
    return order == 2 ? int((97LL * i + 31) % count) : i;  // 97 divides no size of a block
}
inline void run_block(int order, char* stacks) {
    Block& b = *block;
    b.alive = b.threads;
    b.barrier = Gate{};
    b.shared.clear();
    b.warps.assign((b.threads + LANE_COUNT - 1) / LANE_COUNT, Warp{});
    b.fibers.assign(b.threads, Fiber{});
    for (int i = 0; i < b.threads; ++i) {
        b.fibers[i].thread = {unsigned(i), 0, 0};
        b.fibers[i].context.start(stacks + STACK * i, STACK, fiber_main);
    }
    while (b.alive > 0 && b.wrong == nullptr) {
        bool moved = false;
        for (int i = 0; i < b.threads && b.wrong == nullptr; ++i) {
            Fiber& f = b.fibers[place(order, i, b.threads)];
            if (f.done || (f.gate != nullptr && f.gate->epoch == f.epoch)) continue;
            f.gate = nullptr;
            b.turn = &f;
            b.scheduler.switch_to(f.context);
            moved = true;
        }
        if (!moved && b.wrong == nullptr) {
            std::snprintf(message, sizeof message, "deadlock in block %u: %d threads wait for others that have ended or wait elsewhere",
                          b.index.x, b.alive);
            b.wrong = message;
        }
    }
}

// Rounding to nearest and denormals kept, whatever the calling thread has set.
struct Arithmetic {
#if defined(__SSE__)
    unsigned saved = __builtin_ia32_stmxcsr();
    Arithmetic() { __builtin_ia32_ldmxcsr(0x1f80); }
    ~Arithmetic() { __builtin_ia32_ldmxcsr(saved); }
#endif
};
// Run `body` for every thread of every block; return null, or what went wrong.
template <class F> const char* launch(dim3 grid, int threads, int order, F body) {
    const Arithmetic arithmetic;
    thread_local std::unique_ptr<char[]> stacks;  // not cleared: pages that no fiber reaches cost nothing
    thread_local int held = 0;
    if (held < threads) stacks.reset(new char[STACK * size_t(held = threads)]);
    auto here = std::make_unique<Block>();
    here->threads = threads;
    here->grid = grid;
    here->size = {unsigned(threads), 1, 1};
    here->body = [](const void* f) { (*static_cast<const F*>(f))(); };
    here->argument = &body;
    block = here.get();
    const int blocks = int(grid.x) * int(grid.y);
    for (int i = 0; i < blocks && here->wrong == nullptr; ++i) {
        const int at = order == 1 ? blocks - 1 - i : i;
        here->index = {unsigned(at) % grid.x, unsigned(at) / grid.x, 0};
        run_block(order, stacks.get());
    }
    block = nullptr;
    return here->wrong;
}

}  // namespace compll::sim

// --- CUDA's names -------------------------------------------------------------------------------------------------
#define threadIdx (::compll::sim::block->turn->thread)
#define blockIdx (::compll::sim::block->index)
#define gridDim (::compll::sim::block->grid)
#define blockDim (::compll::sim::block->size)

#define COMPLL_SHARED(TYPE, NAME, COUNT) \
    static const char NAME##_place = 0;  \
    TYPE* const NAME = ::compll::sim::shared<TYPE>(&NAME##_place, COUNT)

inline void __syncthreads() {
    compll::sim::Block& b = *compll::sim::block;
    compll::sim::meet(b.barrier, "__syncthreads", 0, b.alive);
}
inline void __syncwarp(unsigned mask = 0xffffffffu) { compll::sim::meet_warp("__syncwarp", mask); }
template <class T> T __shfl_sync(unsigned mask, T x, int source) {
    return compll::sim::exchange("__shfl_sync", mask, x, source % compll::sim::LANE_COUNT);
}
template <class T> T __shfl_down_sync(unsigned mask, T x, unsigned by) {
    const int source = compll::sim::lane() + int(by);
    return compll::sim::exchange("__shfl_down_sync", mask, x, source < compll::sim::LANE_COUNT ? source : compll::sim::lane());
}
template <class T> T __shfl_up_sync(unsigned mask, T x, unsigned by) {
    const int source = compll::sim::lane() - int(by);
    return compll::sim::exchange("__shfl_up_sync", mask, x, source >= 0 ? source : compll::sim::lane());
}
template <class T> T __shfl_xor_sync(unsigned mask, T x, int by) {
    return compll::sim::exchange("__shfl_xor_sync", mask, x, compll::sim::lane() ^ by);
}
template <class T> unsigned __match_any_sync(unsigned mask, T x) {
    return compll::sim::lanes_that("__match_any_sync", mask, x, [x](T other) { return other == x; });
}
inline unsigned __ballot_sync(unsigned mask, int is) {
    return compll::sim::lanes_that("__ballot_sync", mask, is, [](int other) { return other != 0; });
}
inline int __any_sync(unsigned mask, int is) { return __ballot_sync(mask, is) != 0; }
template <class T> T atomicAdd(T* at, T x) { return __atomic_fetch_add(at, x, __ATOMIC_RELAXED); }
template <class T> T atomicCAS(T* at, T old, T x) {
    __atomic_compare_exchange_n(at, &old, x, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return old;
}
template <class T> T atomicMin(T* at, T x) {
    T old = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (x < old && !__atomic_compare_exchange_n(at, &old, x, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    return old;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
