"""The bare slots, executed: results are the architecture's, everything else is preserved.

Not executed here, because the emulated CPU lacks the instruction: monitor, mwait, safe_mwait, xcr_read,
xcr_write, pmc_read, pcid_invalidate, user_access_*, xsaves, xrstors, and the returns to user code. Their
slots are single instructions (pcid_invalidate apart) and are checked by decoding in test_page.py.
"""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unicorn import x86_const as x86

from pvpatch.abi.page import lay_out_page
from pvpatch.abi.spec import load_spec
from tests.abi.bare_machine import (
    AC,
    ARITHMETIC,
    CODE32,
    CODE64,
    DATA,
    DESCRIPTORS,
    DF,
    IF,
    LDT,
    RETURN,
    ROLES,
    SCRATCH,
    STACK,
    TSS,
    ZF,
    BareMachine,
)

SPEC = load_spec()
WIDTHS = (32, 64)
LACKING = {
    "monitor", "mwait", "safe_mwait", "xcr_read", "xcr_write", "pmc_read", "pcid_invalidate",
    "user_access_allow", "user_access_forbid", "xsaves", "xrstors",
}  # fmt: skip
STOPPING = {"halt", "safe_halt"}
FIXED = {
    "cr0_write": {"eax": 0x11},
    "cr3_write": {"eax": 0x5000},
    "cr4_write": {"eax": 0x50280},
    "cr8_write": {"eax": 7},
    "lmsw": {"eax": 0x1},
    "dr_read": {"eax": 3},
    "dr_write": {"eax": 2, "edx": 0x12345678},
    "ldt_load": {"eax": LDT},
    "tr_load": {"eax": TSS},
    "descriptor_write": {"eax": SCRATCH, "edx": 5},
    "segment_load": {"eax": DATA, "edx": 4},
    "segment_store": {"edx": 1},
    "fsbase_write": {"eax": 0x1234000},
    "gsbase_write": {"eax": 0x1234000},
    "msr_read": {"ecx": 0x277},
    "msr_write": {"ecx": 0x10, "eax": 0, "edx": 0},
    "pte_write": {"eax": SCRATCH + 0x100},
    "gdt_load": {"eax": 0x4F, "edx": 0x20000},
    "idt_load": {"eax": 0xFFF, "edx": 0x21000},
    "tlb_invalidate": {"eax": SCRATCH},
    **{name: {"edi": SCRATCH + 0x800, "ecx": 3} for name in ("ins8", "ins16", "ins32")},
    **{name: {"esi": SCRATCH + 0x800, "ecx": 3} for name in ("outs8", "outs16", "outs32")},
}
RUNNABLE = [
    pytest.param(width, call.name, id=f"{width}-{call.name}")
    for width in WIDTHS
    for call in SPEC.calls
    if call.kind == "call"
    and call.bare_code(width)
    and not call.stack_in
    and call.name not in LACKING | STOPPING
]
FLAGS = st.integers(0, 0xFFFF).map(lambda value: value & (ARITHMETIC | IF | DF) | 2)
CHANGED = {"preserved": 0, "if": IF, "zf": ZF, "ac": AC}


@cache
def machine(width: int) -> BareMachine:
    return BareMachine(width)


def registers(width: int) -> st.SearchStrategy[dict[str, int]]:
    return st.fixed_dictionaries({role: st.integers(0, 2**width - 1) for role in ROLES})


@pytest.mark.parametrize(("width", "name"), RUNNABLE)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_everything_but_the_results_is_preserved(width: int, name: str, data: st.DataObject) -> None:
    call = SPEC.call(name)
    before = {**data.draw(registers(width)), **FIXED.get(name, {})}
    flags = data.draw(FLAGS)
    after = machine(width).run(name, before, flags)
    assert (after.ip, after.sp) == (RETURN, STACK + width // 8)
    results = {role for item in call.results for role in (item.reg, item.pair)}
    for role in set(ROLES) - results:
        assert after.registers[role] == before[role], role
    if call.flags != "loaded":
        assert (after.flags ^ flags) & ~CHANGED[call.flags] == 0


@pytest.mark.parametrize("width", WIDTHS)
@given(flags=FLAGS, other=FLAGS)
@settings(deadline=None)
def test_interrupt_flag_calls(width: int, flags: int, other: int) -> None:
    cpu = machine(width)
    assert cpu.run("irq_disable", flags=flags).flags == flags & ~IF
    assert cpu.run("irq_enable", flags=flags).flags == flags | IF
    saved = cpu.run("irq_save", flags=flags)
    assert (saved.registers["eax"], saved.flags) == (flags, flags & ~IF)
    assert cpu.run("irq_restore", {"eax": other}, flags).flags == flags & ~IF | other & IF
    assert cpu.run("flags_read", flags=flags).registers["eax"] == flags
    assert cpu.run("flags_write", {"eax": other}, flags).flags == other


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("name", "after"), [("halt", 1), ("safe_halt", 2)])
def test_halts(width: int, name: str, after: int) -> None:
    cpu = machine(width)
    done = cpu.run(name, flags=2)
    slot = lay_out_page(width, 0, {}).slots[name] + 0x10000
    assert done.ip == slot + after
    assert bool(done.flags & IF) == (name == "safe_halt")


@pytest.mark.parametrize("width", WIDTHS)
def test_abi_query(width: int) -> None:
    cpu = machine(width)
    leaves = [cpu.run("abi_query", {"eax": leaf}).registers for leaf in range(4)]
    assert [(leaf["eax"], leaf["edx"]) for leaf in leaves] == [
        (SPEC.version, 0),
        (0, 0),
        (len(SPEC.calls), SPEC.slot_size),
        (0xFFFFFFDA, 0),
    ]


@pytest.mark.parametrize("width", WIDTHS)
@given(value=st.integers(0, 2**32 - 1), flags=FLAGS)
@settings(deadline=None, max_examples=20)
def test_debug_registers(width: int, value: int, flags: int) -> None:
    cpu = machine(width)
    for index in range(4):
        cpu.run("dr_write", {"eax": index, "edx": value ^ index}, flags)
    for index in range(4):
        assert cpu.run("dr_read", {"eax": index}, flags).registers["eax"] == value ^ index


@pytest.mark.parametrize("width", WIDTHS)
@given(value=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=20)
def test_cr2(width: int, value: int) -> None:
    cpu = machine(width)
    cpu.run("cr2_write", {"eax": value})
    assert cpu.run("cr2_read").registers["eax"] == value


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("table", ["gdt", "idt"])
def test_tables_are_loaded_by_value_and_stored_back(width: int, table: str) -> None:
    cpu = BareMachine(width)
    base = 0x123456 if width == 32 else 0xFFFFFF8012345678
    cpu.run(f"{table}_load", {"eax": 0xABCD0FFF, "edx": base})
    stored = cpu.run(f"{table}_store").registers
    assert (stored["eax"], stored["edx"]) == (0xFFF, base)


@pytest.mark.parametrize("width", WIDTHS)
def test_segments(width: int) -> None:
    cpu = BareMachine(width)
    for index, name in ((0, "ES"), (3, "DS"), (4, "FS"), (5, "GS"), (2, "SS")):
        done = cpu.run("segment_load", {"eax": DATA, "edx": index}, ARITHMETIC)
        assert (done.ip, done.vectors) == (RETURN, [])
        assert cpu.uc.reg_read(getattr(x86, f"UC_X86_REG_{name}")) == DATA
        assert cpu.run("segment_store", {"edx": index}).registers["eax"] == DATA
    cpu.run("ldt_load", {"eax": LDT})
    assert cpu.run("ldt_store").registers["eax"] == LDT
    cpu.run("tr_load", {"eax": TSS})
    assert cpu.run("tr_store").registers["eax"] == TSS


@pytest.mark.parametrize("width", WIDTHS)
def test_a_load_of_ss_returns_without_the_stack_and_loses_only_edx(width: int) -> None:
    before = {role: 0x1000 + place for place, role in enumerate(ROLES)} | {"eax": DATA, "edx": 2}
    done = machine(width).run("segment_load", before, ARITHMETIC)
    assert (done.ip, done.sp, done.flags) == (RETURN, STACK + width // 8, ARITHMETIC | 2)
    assert done.registers == before | {"edx": RETURN}


@pytest.mark.parametrize("width", WIDTHS)
def test_loading_cs_is_an_invalid_opcode(width: int) -> None:
    cpu = BareMachine(width)
    with pytest.raises(Exception, match="Invalid instruction"):
        cpu.run("segment_load", {"eax": CODE32, "edx": 1})


@pytest.mark.parametrize("width", WIDTHS)
@given(flags=FLAGS, old=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=20)
def test_selector_questions(width: int, flags: int, old: int) -> None:
    cpu = machine(width)
    cpu.run("gdt_load", {"eax": 0x4F, "edx": 0x20000})
    found = cpu.run("lar", {"eax": DATA, "edx": old}, flags)
    assert found.registers["edx"] == DESCRIPTORS[DATA] >> 32 & 0xF0FF00
    assert found.flags & ZF
    missing = cpu.run("lar", {"eax": 0x1000, "edx": old}, flags)
    assert (missing.registers["edx"], missing.flags) == (old, flags & ~ZF)
    assert cpu.run("lsl", {"eax": DATA, "edx": old}, flags).registers["edx"] == 0xFFFFFFFF
    assert cpu.run("lsl", {"eax": 0x1000, "edx": old}, flags).registers["edx"] == old
    assert cpu.run("verw", {"eax": DATA}, flags).flags == flags | ZF
    assert cpu.run("verw", {"eax": CODE32}, flags).flags == flags & ~ZF
    assert cpu.run("verr", {"eax": CODE32}, flags).flags == flags | ZF


@given(one=st.integers(0, 0xFFFF), two=st.integers(0, 0xFFFF), rest=st.integers(0, 0xFFFF))
@settings(deadline=None)
def test_arpl(one: int, two: int, rest: int) -> None:
    done = machine(32).run("arpl", {"eax": rest << 16 | one, "edx": two})
    raised = one & 3 < two & 3
    assert done.registers["eax"] == rest << 16 | (one & ~3 | two & 3 if raised else one)
    assert bool(done.flags & ZF) == raised


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("bits", "merged"), [(8, 0x112233D8), (16, 0x1122C7D8), (32, 0xA5B6C7D8)])
def test_ports(width: int, bits: int, merged: int) -> None:
    cpu = machine(width)
    size = bits // 8
    done = cpu.run(f"in{bits}", {"eax": 0x11223344, "edx": 0x3F8})
    assert (done.registers["eax"], done.ports) == (merged, [("in", 0x3F8, size, 0)])
    done = cpu.run(f"out{bits}", {"eax": 0x11223344, "edx": 0x70})
    assert done.ports == [("out", 0x70, size, 0x11223344 & ((1 << bits) - 1))]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("flags", [0, DF])
def test_string_ports_honour_direction(width: int, bits: int, flags: int) -> None:
    cpu = machine(width)
    size, at = bits // 8, SCRATCH + 0x900
    step = -size if flags else size
    done = cpu.run(f"ins{bits}", {"edx": 0x1F0, "edi": at, "ecx": 4}, flags)
    assert (done.registers["edi"], done.registers["ecx"]) == (at + 4 * step, 0)
    assert len(done.ports) == 4
    cell = (0xA5B6C7D8 & ((1 << bits) - 1)).to_bytes(size, "little")
    assert cpu.uc.mem_read(at + 3 * step, size) == cell
    cpu.uc.mem_write(at, b"\x12\x34\x56\x78")
    done = cpu.run(f"outs{bits}", {"edx": 0x1F0, "esi": at, "ecx": 1}, flags)
    assert done.registers["esi"] == at + step
    assert done.ports == [("out", 0x1F0, size, 0x78563412 & ((1 << bits) - 1))]


@given(old=st.integers(0, 2**64 - 1), new=st.integers(0, 2**64 - 1), flags=FLAGS)
@settings(deadline=None)
def test_pte_write_stores_and_gives_the_old_entry(old: int, new: int, flags: int) -> None:
    low, high = new & 0xFFFFFFFF, new >> 32
    cpu = machine(32)
    cpu.uc.mem_write(SCRATCH, old.to_bytes(8, "little"))
    done = cpu.run("pte_write", {"eax": SCRATCH, "edx": low, "ecx": high, "ebx": 0x11}, flags)
    assert done.registers["edx"] << 32 | done.registers["eax"] == old
    assert int.from_bytes(cpu.uc.mem_read(SCRATCH, 8), "little") == new
    cpu.uc.mem_write(SCRATCH, old.to_bytes(8, "little"))
    done = cpu.run("pte_write", {"eax": SCRATCH, "edx": low, "ecx": high, "ebx": 0x01}, flags)
    assert (done.registers["eax"], done.registers["edx"]) == (old & 0xFFFFFFFF, 0)
    assert int.from_bytes(cpu.uc.mem_read(SCRATCH, 8), "little") == old >> 32 << 32 | low
    cpu = machine(64)
    cpu.uc.mem_write(SCRATCH, old.to_bytes(8, "little"))
    done = cpu.run("pte_write", {"eax": SCRATCH, "edx": new, "ebx": 0x11}, flags)
    assert done.registers["eax"] == old
    assert int.from_bytes(cpu.uc.mem_read(SCRATCH, 8), "little") == new


@pytest.mark.parametrize("width", WIDTHS)
def test_descriptor_write(width: int) -> None:
    cpu = machine(width)
    cpu.run("descriptor_write", {"eax": SCRATCH, "edx": 3, "ecx": 0x11112222, "ebx": 0x33334444})
    assert cpu.uc.mem_read(SCRATCH + 24, 8) == bytes.fromhex("2222111144443333")


@pytest.mark.parametrize("width", WIDTHS)
@given(vector=st.integers(32, 255), flags=FLAGS, data=st.data())
@settings(deadline=None, max_examples=40)
def test_soft_int_reaches_the_vector_with_every_register(
    width: int, vector: int, flags: int, data: st.DataObject
) -> None:
    before = data.draw(registers(width))
    done = machine(width).run("soft_int", before, flags, (vector,))
    assert done.vectors == [vector]
    assert (done.registers, done.flags) == (before, flags)
    assert (done.ip, done.sp) == (RETURN, STACK + 2 * width // 8)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["far_jump", "far_return"])
@given(flags=FLAGS, data=st.data())
@settings(deadline=None, max_examples=20)
def test_far_transfers_take_their_target_off_the_stack(
    width: int, name: str, flags: int, data: st.DataObject
) -> None:
    cpu = machine(width)
    cpu.run("gdt_load", {"eax": 0x4F, "edx": 0x20000})
    before = data.draw(registers(width))
    done = cpu.run(name, before, flags, (RETURN + 4, cpu.code_selector), until=RETURN + 4)
    assert (done.registers, done.flags) == (before, flags)
    assert (done.ip, done.sp) == (RETURN + 4, STACK + 2 * width // 8)
    assert cpu.uc.reg_read(x86.UC_X86_REG_CS) == (CODE32 if width == 32 else CODE64)


@pytest.mark.parametrize("width", WIDTHS)
@given(flags=FLAGS, data=st.data())
@settings(deadline=None, max_examples=20)
def test_far_call_leaves_a_far_return_address(width: int, flags: int, data: st.DataObject) -> None:
    cpu = BareMachine(width) if width == 64 else machine(width)
    cpu.run("gdt_load", {"eax": 0x4F, "edx": 0x20000})
    cpu.run("far_jump", stack=(RETURN, cpu.code_selector))
    before = data.draw(registers(width))
    word = width // 8
    done = cpu.run("far_call", before, flags, (RETURN + 4, cpu.code_selector), until=RETURN + 4)
    assert (done.registers, done.flags) == (before, flags)
    assert (done.ip, done.sp) == (RETURN + 4, STACK + word)
    assert cpu.read_word(STACK + word) == RETURN
    assert cpu.read_word(STACK + 2 * word) == cpu.code_selector


@given(flags=FLAGS, new=FLAGS, data=st.data())
@settings(deadline=None, max_examples=20)
def test_iret_takes_flags_and_target_from_the_frame(flags: int, new: int, data: st.DataObject) -> None:
    cpu = machine(32)
    cpu.run("gdt_load", {"eax": 0x4F, "edx": 0x20000})
    before = data.draw(registers(32))
    done = cpu.run("iret", before, flags, (RETURN + 4, CODE32, new), until=RETURN + 4)
    assert (done.registers, done.flags) == (before, new)
    assert (done.ip, done.sp) == (RETURN + 4, STACK + 12)


@given(flags=FLAGS, new=FLAGS, data=st.data())
@settings(deadline=None, max_examples=20)
def test_iretq_takes_the_stack_from_the_frame_too(flags: int, new: int, data: st.DataObject) -> None:
    cpu = machine(64)
    cpu.run("gdt_load", {"eax": 0x4F, "edx": 0x20000})
    before = data.draw(registers(64))
    frame = (RETURN + 4, CODE64, new, STACK + 0x100, DATA)
    done = cpu.run("iret", before, flags, frame, until=RETURN + 4)
    assert (done.registers, done.flags) == (before, new)
    assert (done.ip, done.sp) == (RETURN + 4, STACK + 0x100)


@pytest.mark.parametrize("width", WIDTHS)
def test_high_level_calls_answer_enosys(width: int) -> None:
    cpu = machine(width)
    for call in SPEC.calls:
        if call.bare_code(width) != "enosys":
            continue
        done = cpu.run(call.name, {"eax": 0x30000, "edx": 5})
        assert done.registers["eax"] == -38 & (2**width - 1), call.name
        if call.results[0].pair and width == 32:
            assert done.registers["edx"] == 0xFFFFFFFF
