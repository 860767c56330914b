"""Digests of sources: comments and white space do not count, all else does; a family of kernels has its own digest."""

from pathlib import Path

import pytest

from benchmarks.gpu import sources
from benchmarks.gpu.choice import family
from benchmarks.speed import ROOT

CODE = """\
#pragma once
#define TWICE(x) ((x) + (x))
// What it does.
int f(int a, char b) {
  return a + 1'000 /* here */ * 2 == '"' ? b : a;  // "and" why
}
const char* text = "no // comment";
"""


def code(text: str, tmp_path: Path) -> bytes:
    path = tmp_path / "some.h"
    path.write_text(text)
    return sources.code(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("// What it does.", '/* Nothing\n of "this" */ // isn\'t code\n\n'),
        (" /* here */ ", ""),
        ('  // "and" why\n', "\n\n"),
        ("int a, char b", "int a,\n      char b"),
        ("((x) + (x))", "((x)  \\\n  + (x))  // of x"),
        ("#pragma once", "#  pragma once /* never\n twice */"),
    ],
)
def test_comments_and_white_space_are_no_code(old, new, tmp_path):
    assert CODE.count(old) == 1
    assert code(CODE.replace(old, new), tmp_path) == code(CODE, tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("1'000", "1'001"),
        ("no // comment", "no // comments"),
        ("no // comment", "no  // comment"),
        ("'\"'", "'\\''"),
        ("int f", "intf"),
        ("#pragma once\n", ""),
        ("(x))\n", "(x)) int g;\n"),  # this becomes a part of the macro
        ("return a", "return - a"),
        (" == ", " = = "),
    ],
)
def test_all_else_is_code(old, new, tmp_path):
    assert CODE.count(old) == 1
    assert code(CODE.replace(old, new), tmp_path) != code(CODE, tmp_path)


def test_the_digest_is_of_the_family_alone(tmp_path):
    inside = ["csrc/cuda/cluster/forward.h", "csrc/cells/lstm.h", *family.FILES]
    outside = [*family.CHOICE, "csrc/cuda/planner.h", "csrc/cuda/exchange/l2.h"]
    for name in (*inside, *outside):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("int i;\n")
    before = family.digest(tmp_path)
    for name in (*inside, *outside):
        (tmp_path / name).write_text("int i;  // a number\n")
        assert family.digest(tmp_path) == before
        (tmp_path / name).write_text("int j;\n")
        assert (family.digest(tmp_path) == before) == (name in outside), name
        (tmp_path / name).write_text("int i;\n")
    (tmp_path / "csrc/cuda/cluster/more.h").write_text("")
    assert family.digest(tmp_path) != before
    assert family.digest() != before
    (tmp_path / family.FILES[0]).unlink()  # as in old sources
    assert family.digest(tmp_path) != before


def test_all_files_of_the_family_are_there():
    assert {ROOT / name for name in family.FILES} <= set(family.files())
