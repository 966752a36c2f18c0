// Does this compiler hand a whole tile configuration to the processor, and does the processor take it?
//
// Some compilers declare only the first bytes of the configuration as read by _tile_loadconfig, drop the other
// stores as dead, and load what happened to lie on the stack: a general protection fault in the first matrix
// product (seen with g++ 12.2 at -O2 on a CPU with AMX). Exit code 0: sound. Anything else: build without AMX.
#include <cstdint>
#include <cstring>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

struct config {
    uint8_t palette = 0, start = 0, reserved[14] = {0};
    uint16_t colsb[16] = {0};
    uint8_t rows[16] = {0};
};

static void dirty(unsigned seed) {
    volatile uint8_t junk[1024];
    for (unsigned i = 0; i < sizeof junk; i++) junk[i] = (uint8_t) (seed + i);
}

__attribute__((noinline)) static void load() {
    alignas(64) config c = {};
    c.palette = 1;
    for (int i = 0; i < 8; i++) {
        c.colsb[i] = 64;
        c.rows[i] = 16;
    }
    _tile_loadconfig(&c);
}

int main() {
    if (syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) != 0) return 2;
    alignas(64) config seen;
    std::memset((void *) &seen, 0, sizeof seen);
    dirty(3);
    load();
    _tile_storeconfig(&seen);
    for (int i = 0; i < 8; i++)
        if (seen.colsb[i] != 64 || seen.rows[i] != 16) return 3;
    return 0;
}
