"""Ask Linux for the tile registers of AMX before vLLM uses them.

A process that uses them without having asked dies of an illegal instruction. vLLM 0.32 does not ask for its attention:
it lives on oneDNN having asked for a matrix product before, which small models never make. This file is copied into
vLLM's environment and imported there by every Python that starts (a `.pth` file): the workers have no other hook.
"""

import ctypes
import platform
import sys

ARCH_PRCTL = 158  # arch/x86/entry/syscalls/syscall_64.tbl
ARCH_REQ_XCOMP_PERM, TILE_DATA = 0x1023, 18  # arch/x86/include/uapi/asm/prctl.h; the number of the state component

if sys.platform == "linux" and platform.machine() == "x86_64":
    ctypes.CDLL(None).syscall(ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, TILE_DATA)  # a processor without AMX says no
