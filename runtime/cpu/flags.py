"""Bits of the architecture's registers and of the emulator's summary word (`hflags`)."""

from __future__ import annotations

CF, PF, AF, ZF, SF, TF, IF, DF, OF = 0x1, 0x4, 0x10, 0x40, 0x80, 0x100, 0x200, 0x400, 0x800
IOPL, NT, RF, VM, AC = 0x3000, 0x4000, 0x10000, 0x20000, 0x40000
ARITHMETIC = CF | PF | AF | ZF | SF | OF

DR6_BREAKPOINTS, DR6_STATUS, DR6_RESET = 0xF, 0xE00F, 0xFFFF0FF0
"""Of DR6: B0 to B3; these with BD, BS and BT; and all as it is with none of them set."""

CR0_PE, CR0_TS, CR0_WP, CR0_PG = 1 << 0, 1 << 3, 1 << 16, 1 << 31
CR4_PAE = 1 << 5
EFER_SCE, EFER_LME, EFER_LMA, EFER_NXE = 1 << 0, 1 << 8, 1 << 10, 1 << 11

HF_CPL = 0x3
HF_INHIBIT_IRQ = 1 << 3
HF_CS32 = 1 << 4
HF_SS32 = 1 << 5
HF_ADDSEG = 1 << 6
HF_PE = 1 << 7
HF_MP = 1 << 9
HF_EM = 1 << 10
HF_TS = 1 << 11
HF_LMA = 1 << 14
HF_CS64 = 1 << 15
HF_OSFXSR = 1 << 22
DR6_ONES = 0xFFFF0FF0
"""The bits of DR6 that always read as ones."""

HF2_NMI, HF2_VINTR = 1 << 2, 1 << 3

DESC_PRESENT = 1 << 15
DESC_SYSTEM = 1 << 12  # set for code and data, clear for system descriptors
DESC_CODE = 1 << 11
DESC_CONFORMING = 1 << 10
DESC_WRITABLE = 1 << 9
DESC_ACCESSED = 1 << 8
DESC_LONG = 1 << 21
DESC_BIG = 1 << 22
DESC_GRANULARITY = 1 << 23

ES, CS, SS, DS, FS, GS = range(6)
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)

DE, DB, NMI, BP, OV, BR, UD, NM, DOUBLE_FAULT = range(9)
TS_FAULT, NP, SS_FAULT, GP, PAGE_FAULT = 10, 11, 12, 13, 14
MF, AC_FAULT, MC, XM = 16, 17, 18, 19
HAS_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17})
CONTRIBUTORY = frozenset({0, 10, 11, 12, 13})
EXCEPTION_NAMES = {
    0: "#DE", 1: "#DB", 2: "NMI", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF",
    10: "#TS", 11: "#NP", 12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 18: "#MC", 19: "#XM",
}  # fmt: skip
