/* Decodes a multitude of right, damaged and random payloads through the C ABI of one generated library.
 *
 *     payload_driver GROUPS SEED PARAMETERS        PARAMETERS: the bytes of the library's Params, in hex
 *
 * Built together with the library under the address and undefined-behaviour sanitizers.  Every buffer is a
 * block of the heap of just the size that the ABI asks for, so that one byte read or written outside is seen.
 * A group is one encoded payload and GROUP inputs made of it; all numbers of a group follow from its number.
 * CODEC is the library's name, STATES the number of its state vectors; gradients have elements of BYTES bytes,
 * and SUFFIX ends the symbols of the operations on them: _f32, _f16 or _bf16.  HOP is 1 if the library has that.
 */
#include <sanitizer/common_interface_defs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct compll_item { /* as in compll.h */
    void* gradient;
    uint8_t* payload;
    int64_t n, capacity, length;
    const float* const* state;
    float* const* new_state;
    uint64_t seed, shared_seed;
    float scale;
    int32_t status;
    const uint8_t* source;
    int64_t source_length;
};
typedef int32_t operation(struct compll_item*, int64_t, const void*, void*, int32_t, void*);

#define JOIN(a, b, c) a##b##c
#define SYMBOL(codec, name, suffix) JOIN(codec, name, suffix)
#define ENCODE SYMBOL(CODEC, _encode, SUFFIX)
#define DECODE SYMBOL(CODEC, _decode, SUFFIX)
#define DECODE_ADD SYMBOL(CODEC, _decode_add, SUFFIX)
#define HOP_ENTRY SYMBOL(CODEC, _hop, SUFFIX)
#define MAX_BYTES SYMBOL(CODEC, _max_bytes, )
#define SCRATCH_BYTES SYMBOL(CODEC, _scratch_bytes, )
operation ENCODE, DECODE, DECODE_ADD;
#if HOP
operation HOP_ENTRY;
#endif
int64_t MAX_BYTES(int64_t, const void*), SCRATCH_BYTES(int64_t, const void*);

enum { GROUP = 72 };
enum Kind { VALID, RANDOM, RANDOM_BODY, RANDOM_LENGTH, TRUNCATED, EXTENDED, FLIPPED, HEAD, INDEX, KINDS };
static const char* const NAMES[KINDS] = {"valid",     "random bytes", "random after 16", "random length",
                                         "truncated", "extended",     "bits flipped",    "head changed",
                                         "word changed"};
static uint64_t random_state;
static long long group_now, input_now;

static uint64_t word(void) { /* splitmix64 */
    uint64_t z = (random_state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
static int64_t below(int64_t n) { return n > 0 ? (int64_t)(word() % (uint64_t)n) : 0; }

static void say_where(void) { fprintf(stderr, "in group %lld, input %lld\n", group_now, input_now); }

static void* block(int64_t size, size_t align) { /* exactly so many bytes */
    void* p = NULL;
    if (posix_memalign(&p, align, (size_t)size) != 0) abort();
    return p;
}

static void call(operation* op, struct compll_item* item, const void* params) {
    void* scratch = block(SCRATCH_BYTES(item->n, params), 64);
    const int32_t worst = op(item, 1, params, scratch, 1, NULL);
    free(scratch);
    if (worst != (item->status < 0 ? item->status : 0) || item->status > 1 || item->status < -3) {
        fprintf(stderr, "the call returned %d and status %d\n", worst, item->status);
        say_where();
        exit(1);
    }
}

static float number(void) { /* of every magnitude; sometimes none */
    static const float edges[] = {0.0f, -0.0f, 1e-45f, 3.4e38f, -3.4e38f, __builtin_inff(), __builtin_nanf("")};
    if (below(200) == 0) return edges[below(7)];
    return (float)((double)below(1 << 24) / (1 << 23) - 1.0);
}

static void* gradient(int64_t n) { /* a block of n elements */
    char* g = block(BYTES * n, 8);
    for (int64_t i = 0; i < n; ++i) {
        const float x = number();
        const uint16_t bits = (uint16_t)(word() & (below(200) ? 0xbfff : 0xffff)); /* most are below 2 */
        memcpy(g + BYTES * i, BYTES == 4 ? (const void*)&x : (const void*)&bits, BYTES);
    }
    return g;
}

static float* state(int64_t n) { /* n numbers: a state is finite */
    float* s = block(4 * n, 8);
    for (int64_t i = 0; i < n; ++i) {
        s[i] = number();
        if (!(s[i] > -1.0f && s[i] < 1.0f)) s[i] = 0.5f;
    }
    return s;
}

/* Run encode, or hop if there is a source, on a random gradient of n elements; returns the item, its payload alive. */
static struct compll_item encoded(operation* op, int64_t n, const uint8_t* source, int64_t length, const void* params) {
    float* states[2 * STATES + 1]; /* old ones, new ones; an array has an element */
    for (int v = 0; v < 2 * STATES; ++v) states[v] = state(n);
    const int64_t most = MAX_BYTES(n, params);
    struct compll_item item = {.gradient = gradient(n), .payload = block(most, 16), .n = n, .capacity = most,
        .state = (const float* const*)states, .new_state = states + STATES, .seed = word(), .shared_seed = 7,
        .scale = 0.5f, .source = source, .source_length = length};
    call(op, &item, params);
    for (int v = 0; v < 2 * STATES; ++v) free(states[v]);
    free(item.gradient);
    if (item.status >= 0 && (item.length < 0 || item.length > most)) {
        fprintf(stderr, "a payload of %lld bytes, and at most %lld\n", (long long)item.length, (long long)most);
        say_where();
        exit(1);
    }
    return item;
}

/* Make an input of one kind from a right payload; sets its length. */
static uint8_t* damaged(enum Kind kind, const uint8_t* right, int64_t n, int64_t* length) {
    const int64_t whole = *length;
    if (kind == TRUNCATED) *length = below(2) ? below(whole) : whole - (whole > 0);
    if (kind == EXTENDED) *length = whole + 1 + (below(2) ? 0 : below(40));
    if (kind == RANDOM_LENGTH) *length = below(2 * whole + 40);
    const int64_t kept = kind == RANDOM || kind == RANDOM_LENGTH ? 0 : kind == RANDOM_BODY ? 16 : whole;
    uint8_t* p = block(*length, 16);
    for (int64_t i = 0; i < *length; ++i)
        p[i] = i < whole && i < kept ? right[i] : (uint8_t)word();
    if (*length == 0) return p;
    if (kind == FLIPPED)
        for (int64_t k = 1 + below(4); k > 0; --k) p[below(*length)] ^= (uint8_t)(1 << below(8));
    if (kind == HEAD || kind == INDEX) { /* a 32-bit word that decides how much, or where */
        const uint32_t edges[] = {0, 1, (uint32_t)n, (uint32_t)n - 1, (uint32_t)n + 1, 0x7fffffff, 0x80000000, 0xffffffff};
        const int64_t words = *length / 4, at = kind == HEAD ? below(words < 4 ? words : 4) : below(words);
        const uint32_t new = below(2) ? edges[below(8)] : (uint32_t)below(2 * n + 2);
        if (words > 0) memcpy(p + 4 * at, &new, 4);
    }
    return p;
}

static int hex(int c) { return c >= 'a' ? c - 'a' + 10 : c - '0'; }

int main(int argc, char** argv) {
    if (argc != 4) return 2;
    const long long groups = atoll(argv[1]);
    const int64_t size = (int64_t)strlen(argv[3]) / 2;
    uint8_t* params = block(size, 16);
    for (int64_t i = 0; i < size; ++i) params[i] = (uint8_t)(hex(argv[3][2 * i]) * 16 + hex(argv[3][2 * i + 1]));
    __sanitizer_set_death_callback(say_where);
    long long counts[KINDS][2] = {{0}};
    for (group_now = 0; group_now < groups; ++group_now) {
        random_state = strtoull(argv[2], NULL, 10) * 0x9e3779b97f4a7c15u ^ (uint64_t)group_now << 20;
        const int64_t n = below(8) ? below(300) : below(4) ? below(20) : below(3000);
        input_now = -1;
        struct compll_item right = encoded(ENCODE, n, NULL, 0, params);
        if (right.status < 0) {
            fprintf(stderr, "encode: status %d\n", right.status);
            say_where();
            return 1;
        }
        for (input_now = 0; input_now < GROUP; ++input_now) {
            const enum Kind kind = (enum Kind)(input_now % KINDS);
            int64_t length = right.length;
            uint8_t* payload = damaged(kind, right.payload, n, &length);
            void* out = gradient(n);
            struct compll_item item = {.gradient = out, .payload = payload, .n = n, .capacity = length,
                .length = length, .shared_seed = 7, .scale = 0.5f};
            call(input_now / KINDS % 2 ? DECODE_ADD : DECODE, &item, params);
            int32_t status = item.status;
#if HOP
            item = encoded(HOP_ENTRY, n, payload, length, params);
            if ((item.status < 0) != (status < 0)) status = -100;
            free(item.payload);
#endif
            if (status == -100 || (kind == VALID && status < 0)) {
                fprintf(stderr, "%s: status %d; a right payload is refused, or hop and decode differ\n", NAMES[kind], item.status);
                say_where();
                return 1;
            }
            ++counts[kind][status < 0];
            free(payload);
            free(out);
        }
        free(right.payload);
    }
    for (int kind = 0; kind < KINDS; ++kind)
        printf("%s\t%lld\t%lld\n", NAMES[kind], counts[kind][0], counts[kind][1]);
    free(params);
    return 0;
}
