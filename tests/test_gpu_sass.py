"""The kernel benchmark's analysis of machine code: instructions, loops, and the composition of a step."""

import pytest

from benchmarks.gpu.kernel import sass

# a loop over tiles around a loop over steps: products in a loop of their own, a barrier, a loop that polls, results
# unit by unit, and code that was moved behind the jump back
STEPS_OF_CUOBJDUMP = """
\t\tFunction : run
\t.headerflags\t@"EF_CUDA_SM90"
        /*0000*/                   S2R R1, SR_TID.X ;                  /* 0x0000000000017919 */
                                                                       /* 0x000e220000002100 */
        /*0010*/                   MOV R2, RZ ;                        /* 0x0000000000027202 */
        /*0020*/              @!P0 BRA 0x130 ;                         /* 0x0000000000008947 */
        /*0030*/                   HMMA.16816.F32.BF16 R8, R4, R6, R8 ;
        /*0040*/               @P1 BRA 0x30 ;
        /*0050*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0060*/                   LDG.E.STRONG.GPU R3, desc[UR4][R2.64] ;
        /*0070*/                   ISETP.GE.U32.AND P2, PT, R3, R5, PT ;
        /*0080*/              @!P2 BRA 0x60 ;
        /*0090*/                   FFMA R9, R9, R9, R9 ;
        /*00a0*/                   STG.E.U16.STRONG.GPU desc[UR4][R2.64], R9 ;
        /*00b0*/               @P3 BRA 0x90 ;
        /*00c0*/               @P4 BRA 0x110 ;
        /*00d0*/              @!P5 BRA 0x20 ;
        /*00e0*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*00f0*/                   BRA.U UP0, 0x10 ;
        /*0100*/                   EXIT ;
        /*0110*/                   MUFU.EX2 R4, R4 ;
        /*0120*/                   BRA 0xd0 ;
        /*0130*/                   I2F.U32.RP R4, R4 ;
        /*0140*/                   CALL.REL.NOINC 0x160 ;
        /*0150*/                   BRA 0xd0 ;
        /*0160*/                   RET.REL.NODEC R4 0x0 ;
        /*0170*/                   BRA 0x170;
"""
# two roles that share a beginning and a barrier; a wait whose rare part reads the clock; a row that is stored in one
# piece or, for another argument, as single values, which takes more instructions
ROLES = """
        /*0000*/                   S2R R1, SR_TID.X ;
        /*0010*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [R1], R2 ;
        /*0020*/               @P1 BRA 0x90 ;
        /*0030*/                   CS2R R4, SR_CLOCKLO ;
        /*0040*/                   IADD3 R4, R4, 0x1, RZ ;
        /*0050*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [R1], R2 ;
        /*0060*/               @P1 BRA 0x90 ;
        /*0070*/                   LDG.E.STRONG.GPU R3, desc[UR4][R2.64] ;
        /*0080*/                   BRA 0x50 ;
        /*0090*/                   HMMA.16816.F32.BF16 R8, R4, R6, R8 ;
        /*00a0*/               @P2 BRA 0x160 ;
        /*00b0*/              @!P3 BRA 0x130 ;
        /*00c0*/                   MUFU.TANH R8, R8 ;
        /*00d0*/                   STG.E.U16 desc[UR4][R2.64], R8 ;
        /*00e0*/                   STG.E.U16 desc[UR4][R2.64+0x2], R9 ;
        /*00f0*/                   STG.E.U16 desc[UR4][R2.64+0x4], R9 ;
        /*0100*/                   STG.E.U16 desc[UR4][R2.64+0x6], R9 ;
        /*0110*/                   STL [R1], R4 ;
        /*0120*/                   BRA 0x180 ;
        /*0130*/                   MUFU.TANH R8, R8 ;
        /*0140*/                   STG.E.128 desc[UR4][R2.64], R8 ;
        /*0150*/                   BRA 0x180 ;
        /*0160*/                   STS [R1], R8 ;
        /*0170*/               @P5 EXIT ;
        /*0180*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0190*/               @P4 BRA 0x10 ;
        /*01a0*/                   EXIT ;
"""
LOOPS_OF_NVDISASM = """
\t.section\t.text.add,"ax",@progbits
.text.add:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDS R2, [R1] ;
.L_x_0:
        /*0020*/                   DFMA R4, R2, R2, R4 ;
        /*0030*/               @P0 BRA `(.L_x_0) ;
        /*0040*/                   STL [R1], R4 ;
        /*0050*/               @P1 BRA `(.L_x_1) ;
        /*0060*/                   EXIT ;
.L_x_2:
        /*0070*/                   BRA `(.L_x_2) ;
"""


def nested(loops) -> list:
    return [(loop.header, nested(loop.inner)) for loop in loops]


def test_instructions_and_jumps_are_read():
    (code,) = sass.parse(STEPS_OF_CUOBJDUMP).values()
    assert [each.address for each in code] == list(range(0, 0x180, 0x10))
    product = code[3]
    assert (product.opcode, product.operands) == ("HMMA.16816.F32.BF16", "R8, R4, R6, R8")
    following = sass.successors(code)
    assert following[0x20] == [0x130, 0x30]
    assert following[0xF0] == [0x10, 0x100]  # a condition among the operands
    assert (following[0x100], following[0x120], following[0x140]) == ([], [0xD0], [0x150])
    assert sass.parse("") == {}


def test_labels_are_read():
    found = sass.parse(LOOPS_OF_NVDISASM)
    assert list(found) == ["add"]
    assert [each.target for each in found["add"] if each.target is not None] == [0x20, 0x10, 0x70]


def test_loops_are_found():
    (steps,) = sass.parse(STEPS_OF_CUOBJDUMP).values()
    found = sass.loops(steps)
    assert nested(found) == [(0x10, [(0x20, [(0x30, []), (0x60, []), (0x90, [])])]), (0x170, [])]
    assert found[0].inner[0].body == {*range(0x20, 0xE0, 0x10), *range(0x110, 0x160, 0x10)}
    assert nested(sass.loops(sass.parse(LOOPS_OF_NVDISASM)["add"])) == [(0x10, [(0x20, [])]), (0x70, [])]
    assert sass.loops([]) == ()


def test_a_loop_that_is_entered_in_two_places_is_one_loop():
    text = "/*0000*/ @P0 BRA 0x20 ;\n/*0010*/ NOP ;\n/*0020*/ NOP ;\n/*0030*/ @P1 BRA 0x10 ;\n/*0040*/ EXIT ;"
    (loop,) = sass.loops(sass.parse(text)[""])
    assert (loop.header, loop.body, loop.inner) == (0x10, {0x10, 0x20, 0x30}, ())


def test_the_time_step_is_the_innermost_loop_that_multiplies_waits_and_stores():
    (code,) = sass.parse(STEPS_OF_CUOBJDUMP).values()
    assert sass.time_loop(code).header == 0x20
    for missing in ("HMMA", "BAR LDG", "STG"):  # without products of matrices, FFMA is the product
        less = [each for each in code if not each.opcode.startswith(tuple(missing.split()))]
        loop = sass.time_loop(less)
        assert loop is None if missing != "HMMA" else loop.header == 0x20
    assert sass.time_loop(sass.parse(LOOPS_OF_NVDISASM)["add"]) is None


def test_instructions_are_counted_by_kind_and_without_polling():
    (code,) = sass.parse(STEPS_OF_CUOBJDUMP).values()
    count = sass.count(code, sass.time_loop(code))
    assert (count.instructions, count.loops, count.polls) == (14, 2, 1)
    kinds = {"mma": 1, "multiply-add": 1, "STG": 1, "BAR": 1, "MUFU": 1, "integer division": 1, "call": 1, "jump": 7}
    assert count.kinds == kinds
    (outer, _) = sass.loops(sass.parse(LOOPS_OF_NVDISASM)["add"])
    count = sass.count(sass.parse(LOOPS_OF_NVDISASM)["add"], outer)
    assert count.kinds == {"multiply-add": 1, "LDS": 1, "local memory": 1, "jump": 2}


@pytest.mark.parametrize(
    ("opcode", "kind"),
    [
        ("HGMMA.64x8x16.F32.BF16", "mma"),
        ("LDSM.16.M88.4", "ldmatrix"),
        ("LDS.128", "LDS"),
        ("STSM.16.M88.4", "STS"),
        ("LD.E", "LDG"),
        ("LDGSTS.E.BYPASS.128", "cp.async"),
        ("LDGDEPBAR", None),
        ("LDC", None),
        ("LDL.LU", "local memory"),
        ("REDG.E.ADD.STRONG.GPU", "atomic"),
        ("S2UR", "S2R"),
        ("I2F.RP", "integer division"),
        ("I2F.U32", None),
        ("HFMA2.MMA", None),  # moves a constant into a register
        ("IMAD.WIDE", None),
    ],
)
def test_kinds_of_instructions(opcode, kind):
    assert sass.Instruction(0, opcode, "", False).kind == kind


def test_a_role_is_the_longest_way_through_a_loop_without_what_is_rare():
    (code,) = sass.parse(ROLES).values()
    step = sass.time_loop(code)
    assert (step.header, len(step.body)) == (0x10, 25)
    role = sass.role(code, step)
    way = {"mma": 1, "STG": 1, "BAR": 1, "mbarrier": 1, "MUFU": 1, "jump": 5}
    assert (role.instructions, role.kinds, role.loops, role.polls) == (10, way, 0, 0)
    role = sass.role(code, step, lambda instruction: instruction.kind == "MUFU")  # the other role, with a long wait
    way = {"mma": 1, "STS": 1, "BAR": 1, "mbarrier": 1, "jump": 3}
    assert (role.instructions, role.kinds, role.loops, role.polls) == (10, way, 0, 1)
    everything = sass.role(code, step, lambda instruction: False)
    assert (everything.instructions, everything.kinds["STG"], everything.kinds["local memory"]) == (16, 4, 1)


def test_a_role_can_be_the_shortest_way_that_does_most_work():
    """Long waits and stores of single values do not count as work here, although nothing is avoided."""
    (code,) = sass.parse(ROLES).values()
    role = sass.role(code, sass.time_loop(code), lambda each: False, lambda each: each.kind in ("mma", "MUFU"))
    assert (role.instructions, role.polls, role.kinds["STG"]) == (10, 0, 1)
    role = sass.role(code, sass.time_loop(code), work=lambda each: each.kind == "STS")
    assert (role.instructions, role.kinds["STS"]) == (8, 1)


def test_what_is_rare_counts_where_no_way_leads_around_it():
    """A rare instruction counts if no jump leads around it."""
    (code,) = sass.parse(ROLES.replace("@!P3 BRA 0x130", "@!P3 IADD3 R8, R8, 0x1, RZ")).values()
    assert sass.role(code, sass.time_loop(code)).kinds["STS"] == 1  # the other role avoids it
    (code,) = sass.parse(ROLES.replace("@P2 BRA 0x160", "@P2 NOP")).values()
    straight = [each for each in code if each.address != 0xB0]
    assert sass.role(straight, sass.time_loop(straight)).kinds["STG"] == 4


def test_loops_inside_a_role_are_left_out():
    (code,) = sass.parse(STEPS_OF_CUOBJDUMP).values()
    role = sass.role(code, sass.time_loop(code), lambda instruction: False)
    assert (role.instructions, role.loops, role.polls) == (6, 2, 1)
    assert role.kinds == {"BAR": 1, "MUFU": 1, "jump": 4}  # through the code that was moved behind the jump back
    role = sass.role(code, sass.time_loop(code))  # one of the loops moves single values
    assert (role.instructions, role.kinds) == (5, {"integer division": 1, "call": 1, "jump": 3})
    (outer, _) = sass.loops(sass.parse(LOOPS_OF_NVDISASM)["add"])
    role = sass.role(sass.parse(LOOPS_OF_NVDISASM)["add"], outer)
    assert (role.instructions, role.kinds, role.loops) == (3, {"LDS": 1, "local memory": 1, "jump": 1}, 1)


def test_special_registers_are_named():
    (code,) = sass.parse(ROLES).values()
    assert sass.special_registers(code) == {"SR_TID.X", "SR_CLOCKLO"}
    step = sass.inside(code, sass.time_loop(code))
    assert len(step) == 25
    assert sass.special_registers(step) == {"SR_CLOCKLO"}
    assert sass.kinds(step)["local memory"] == 1  # including code off the path
