"""The warp kernels as a family of sources, whose digest identifies the sources that results were measured with."""

from pathlib import Path

from benchmarks.gpu import sources
from benchmarks.speed import ROOT

FOLDERS = ("csrc/cuda/cluster", "csrc/cells")
FILES = (
    *("csrc/cuda/device.h", "csrc/cuda/sm90.h", "csrc/cuda/terms.h"),
    *("csrc/cuda/exchange/cluster.h", "csrc/cuda/exchange/exchange.h", "csrc/cuda/exchange/messages.h"),
    "csrc/cuda/exchange/split.h",
)
CHOICE = ("csrc/cuda/cluster/choice.h", "csrc/cuda/cluster/measured.h")  # they choose kernels, but are not part of them


def files(root: Path = ROOT) -> list[Path]:
    """Return the family's own sources."""
    found = {path for folder in FOLDERS for path in (root / folder).rglob("*")} | {root / file for file in FILES}
    return sorted(path for path in found - {root / file for file in CHOICE} if path.is_file())  # some are new


def digest(root: Path = ROOT) -> str:
    """Return the digest of the family's own sources, without comments and white space."""
    return sources.digest(files(root), root, sources.code)
