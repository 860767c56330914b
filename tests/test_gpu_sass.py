"""What the bench of one kernel reads out of machine code: instructions, loops, and what a step consists of."""

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
    for missing in ("HMMA", "BAR LDG", "STG"):  # without products of matrices, FFMA is what it multiplies with
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
        ("HFMA2.MMA", None),  # how a constant gets into a register
        ("IMAD.WIDE", None),
    ],
)
def test_kinds_of_instructions(opcode, kind):
    assert sass.Instruction(0, opcode, "", False).kind == kind
