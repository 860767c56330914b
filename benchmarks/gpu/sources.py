"""Digests of sources: of their bytes, or of the code that a C++ compiler sees, without comments and white space."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

# The tokens of C++; alternatives that others would match come first.
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
    """Return SHA-256 of the files' names, relative to ``root``, and contents, in the order of the names."""
    found = hashlib.sha256()
    for path in sorted(paths):
        found.update(f"{path.relative_to(root)}\n".encode() + content(path))
    return found.hexdigest()


def code(path: Path) -> bytes:
    """Return a C++ file without comments, with its tokens in one layout, independent of the original one."""
    return "\n".join(_lines(path.read_text())).encode()


def _lines(text: str) -> Iterator[str]:
    """Yield the lines: each preprocessor directive, and all code between two of them."""
    code: list[str] = []
    for line in _tokens_by_line(text.replace("\\\n", "")):
        if line[0] == "#":
            yield from filter(None, [" ".join(code), " ".join(line)])
            code = []
        else:
            code += line
    yield " ".join(code)


def _tokens_by_line(text: str) -> Iterator[list[str]]:
    """Yield the tokens of each line that has some; a comment is a space, however many lines it has."""
    line: list[str] = []
    for token in TOKEN.finditer(f"{text}\n"):
        if token["line"]:
            if line:
                yield line
            line = []
        elif not token["space"]:
            line.append(token[0])
