"""The kernels of clusters as a family of sources, by whose digest results say what they were measured with."""

from pathlib import Path

from benchmarks.gpu import sources
from benchmarks.speed import ROOT

FOLDERS = ("csrc/cuda/cluster", "csrc/cells")
FILES = (
    *("csrc/cuda/device.h", "csrc/cuda/sm90.h", "csrc/cuda/terms.h"),
    *("csrc/cuda/exchange/cluster.h", "csrc/cuda/exchange/exchange.h", "csrc/cuda/exchange/messages.h"),
    "csrc/cuda/exchange/split.h",
)
CHOICE = ("csrc/cuda/cluster/choice.h", "csrc/cuda/cluster/measured.h")  # which choose the kernels, and are none


def files(root: Path = ROOT) -> list[Path]:
    """The family's own sources."""
    found = {path for folder in FOLDERS for path in (root / folder).rglob("*")} | {root / file for file in FILES}
    return sorted(path for path in found - {root / file for file in CHOICE} if path.is_file())  # old ones lack some


def digest(root: Path = ROOT) -> str:
    """Of the family's own sources, without comments and white space."""
    return sources.digest(files(root), root, sources.code)
