"""Digests of sources: of their bytes, or of what a C++ compiler sees of them, without comments and white space."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

# What C++ text consists of; what stands first goes before what else would match.
TOKEN = re.compile(
    r"(?P<space>//[^\n]*|/\*.*?\*/|[^\S\n]+)"
    r"|(?P<line>\n)"
    r"|(?:u8|[uUL])?R\"(?P<end>[^(\s]*)\(.*?\)(?P=end)\""  # a raw string
    r"|\"(?:\\.|[^\"\\\n])*\""
    r"|\.?\d(?:[eEpP][+-]|[\w.'])*"  # a number, perhaps with separators, which look like quotes
    r"|'(?:\\.|[^'\\\n])*'"
    r"|\w+"
    r"|<<=|>>=|\.\.\.|->\*?|::|\+\+|--|<<|>>|&&|\|\||##|[-+*/%&|^<>=!]=|.",
    re.DOTALL,
)


def digest(paths: Iterable[Path], root: Path, content: Callable[[Path], bytes] = Path.read_bytes) -> str:
    """SHA-256 of the files' names, relative to ``root``, and contents, in the order of the names."""
    found = hashlib.sha256()
    for path in sorted(paths):
        found.update(f"{path.relative_to(root)}\n".encode() + content(path))
    return found.hexdigest()


def code(path: Path) -> bytes:
    """A C++ file without comments, and with its tokens laid out in one way, however they were before."""
    return "\n".join(_lines(path.read_text())).encode()


def _lines(text: str) -> Iterator[str]:
    """A directive of the preprocessor is a line of its own, and so is all code between two of them."""
    code: list[str] = []
    for line in _tokens_by_line(text.replace("\\\n", "")):
        if line[0] == "#":
            yield from filter(None, [" ".join(code), " ".join(line)])
            code = []
        else:
            code += line
    yield " ".join(code)


def _tokens_by_line(text: str) -> Iterator[list[str]]:
    """The tokens of each line that has some; a comment is a space, however many lines it has."""
    line: list[str] = []
    for token in TOKEN.finditer(f"{text}\n"):
        if token["line"]:
            if line:
                yield line
            line = []
        elif not token["space"]:
            line.append(token[0])
