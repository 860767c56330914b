"""The common parts of the harnesses: cells by name, options, errors for people, results that are never half-written."""

import argparse
import contextlib
import glob
import json
import math
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import torch

import fused_rnn
from fused_rnn import cells

CELLS: dict[str, Callable[..., torch.nn.Module]] = {
    "rnn": fused_rnn.RNN,
    "lstm": fused_rnn.LSTM,
    "gru": partial(fused_rnn.GRU, reset_after=False),
    "multiplicative_lstm": fused_rnn.MultiplicativeLSTM,
    "multiplicative_gru": fused_rnn.MultiplicativeGRU,
    "gru_reset_after": fused_rnn.GRU,
    "multiplicative_lstm_hidden": partial(fused_rnn.MultiplicativeLSTM, variant="hidden"),
}
COMPARED = ("rnn", "lstm", "gru", "multiplicative_lstm", "multiplicative_gru")  # where nobody says which
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


class InputError(Exception):
    """Wrong input from the user; the message is one sentence with what was given and what is needed."""


class RunError(Exception):
    """What ends a run although its input is right; ``run_command`` completes the sentence by what is saved of it."""


class WritingError(RunError):
    """A file that cannot be written, as a full disk has it; what was there before is left."""

    def __init__(self, path: Path, error: OSError):
        super().__init__(f"{path} cannot be written: {error.strerror}")
        self.reason = error.strerror


class Parser(argparse.ArgumentParser):
    """An argument parser whose help names every default and whose errors are InputError."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, formatter_class=_HelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str):
        raise InputError(f"{message}; {self.prog} --help explains the options")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, "") else super()._get_help_string(action)


def positive(text: str) -> int:
    """An argparse type: an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    if value >= 2**63:
        raise argparse.ArgumentTypeError(f"must be below 2**63, got {value}")
    return value


def threads(text: str) -> int:
    """An argparse type: a number of threads, for each of which the machine has a core."""
    value, cores = positive(text), os.cpu_count() or 1
    if value > cores:
        raise argparse.ArgumentTypeError(f"must be at most {cores}, the number of this machine's cores, got {value}")
    return value


# Adam's first step is ten times the learning rate, and the range of initial weights is twice --init: all in float32,
# which ends at 3.4e38
LARGEST = 1e37


def number(text: str) -> float:
    """An argparse type: a number that leaves float32 room to compute with it."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {text}")
    if abs(value) > LARGEST:
        raise argparse.ArgumentTypeError(f"must be at most {LARGEST:g} to be computed with in float32, got {text}")
    return value


def positive_number(text: str) -> float:
    """An argparse type: a ``number`` above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a finite number above 0, got {text}")
    return number(text)


def fraction(text: str) -> float:
    """An argparse type: a number of at least 0 and below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and below 1, got {text}")
    return value


def share(text: str) -> float:
    """An argparse type: a number above 0, at most 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, got {text}")
    return value


def device(text: str) -> str:
    """An argparse type: the name of a device, which may not be there; there is one CPU, whatever its number."""
    return "cpu" if re.fullmatch(r"cpu:\d+", text) else text


def seed(text: str) -> int:
    """An argparse type: an integer that every random generator takes as its seed."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"must be between 0 and {2**32 - 1}, got {value}")
    return value


def add_backend_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where to compute, for any command that runs a model."""
    parser.add_argument(
        "--backend", choices=("auto", *fused_rnn.backends()), default="auto", help="what runs the cells"
    )
    parser.add_argument("--device", type=device, default="cpu", help="where to compute: cpu, cuda, cuda:1, ...")


def recurrent_parameters(cell: str, features: int, hidden: int, layers: int) -> int:
    """Return the number of parameters of recurrent layers, a key of ``CELLS``, without making any."""
    spec = spec_of(cell)

    def of_one(features: int) -> int:
        return sum(math.prod(spec.weight_shape(name, features, hidden)) for name in spec.weights)

    return of_one(features) + (layers - 1) * of_one(hidden)


def spec_of(cell: str) -> cells.Cell:
    """Return the sizes of a cell, a key of ``CELLS``."""
    return cells.CELLS[CELLS[cell](1, 1, device="meta").cell]


def open_device(name: str) -> torch.device:
    """Return the device of this name; raise InputError if this machine lacks it."""
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise InputError(f"--device {name} is unknown: expected cpu, cuda or cuda with a number, such as cuda:1")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name} is not there: {str(error).splitlines()[0]}") from None


def check_backend(device: str, dtype: str, backend: str) -> fused_rnn.choice.Choice:
    """Return the backend that will run, and why; raise InputError if this machine lacks the device or the backend."""
    open_device(device)
    try:
        return fused_rnn.choose_backend(device, getattr(torch, dtype), backend)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {device} --backend {backend} cannot run here: {reason}") from None


def add_common_options(parser: argparse.ArgumentParser, baselines: Collection[str] = (), **defaults) -> None:
    """Add the options of every training harness; ``defaults`` are by option name.

    ``baselines`` are cells of torch.nn that the harness can train as well.
    """
    help = (
        f"one or more of {', '.join(CELLS)}: gru resets before the recurrent product, as Chung et al. 2014, and "
        "gru_reset_after behind it, as torch.nn and cuDNN; multiplicative_lstm modulates its input, and "
        "multiplicative_lstm_hidden its hidden state, as Krause et al. 2016"
    )
    if baselines:
        help += f"; to compare with, torch.nn's: {', '.join(baselines)}"
    parser.add_argument("--cell", nargs="+", choices=[*CELLS, *baselines], metavar="CELL", help=help)
    add_backend_options(parser)
    parser.add_argument("--dtype", choices=DTYPES, help="of parameters and activations")
    parser.add_argument("--hidden", type=positive, help="units per layer")
    parser.add_argument("--layers", type=positive, help="recurrent layers")
    parser.add_argument("--batch", type=positive, help="sequences per step")
    parser.add_argument("--epochs", type=positive, help="passes over the training data")
    parser.add_argument("--lr", type=positive_number, help="learning rate")
    parser.add_argument("--seed", type=seed, help="seed of weights, data and sampling")
    parser.add_argument("--out", type=Path, help="folder for results, pictures and checkpoints")
    parser.add_argument(
        "--threads",
        type=threads,
        metavar="N",
        help="threads of the CPU (default: as many as it has cores or OMP_NUM_THREADS says, or one where a short trial "
        "finds these no faster; with --resume as many as before)",
    )
    parser.add_argument(
        "--cuda-graph",
        action="store_true",
        help="on a GPU: queue a whole training step by one call, after the first few of its shape; the same results, "
        "sooner where steps are short",
    )
    parser.add_argument("--resume", action="store_true", help="go on from what an interrupted run left in --out")
    shared = {"dtype": "float32", "layers": 1, "seed": 0}
    parser.set_defaults(**{**shared, **defaults})


def now() -> str:
    """Return the date and time, UTC, as results state them."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def origin(module: str, arguments: list[str] | None = None) -> dict[str, str]:
    """Return when and by which command results are made; the arguments are by default those of this process."""
    given = sys.argv[1:] if arguments is None else arguments
    return {"date": now(), "command": shlex.join(["python", "-m", module, *given])}


def hardware() -> dict[str, str | int]:
    """Return the machine and the versions, as results state them."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fused_rnn": fused_rnn.__version__,
    }


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path`` to write to; move it over ``path`` only if no error occurred.

    What a killed process left under such a name is removed. Raises WritingError with the reason of an OSError.
    """
    partial_path = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_over(path)
        try:
            yield partial_path
            os.replace(partial_path, path)
        finally:
            partial_path.unlink(missing_ok=True)
    except OSError as error:
        raise WritingError(path, error) from None


def _remove_left_over(path: Path) -> None:
    """Remove the temporary files beside ``path`` whose processes, whose numbers they bear, live no more."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        number = left.name.split(".")[-2]
        if number.isdecimal() and not _lives(int(number)):
            left.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:  # it is another user's
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


@contextlib.contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """Set a variable of the environment for the code inside."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


TIME_LEFT = "{desc} {percentage:3.0f}% |{bar}| {elapsed} gone, {remaining} left"  # what a progress bar shows
NOT_MEASURED = "Not measured yet."  # what the README says of results that are not there


def digits(number: float | None) -> str:
    """Format three significant digits, without an exponent; a dash for None."""
    if number is None:
        return "–"
    return f"{number:.0f}" if number >= 100 else f"{number:#.3g}"


def folded(title: str, *parts: str) -> str:
    """Fold paragraphs of Markdown, which are shown when the reader opens them."""
    return "\n\n".join([f"<details><summary>{title}</summary>", *parts, "</details>"])


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Format a table of Markdown."""
    head = list(head)
    lines = ["".join(f"| {cell} " if cell else "| " for cell in row) + "|" for row in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def file_name(kind: str, *parts: str) -> str:
    """Return the name of a file of results: its kind, then ``parts`` in lower case, digits and hyphens."""
    return "-".join([kind, *(re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-") for part in parts)]) + ".json"


RECORD = 4000  # characters; longer lines of JSON are broken at the next level


def json_lines(content: object, indent: str = "") -> str:
    """Format JSON with a record per line: a value that fits a line is one line, and so is each item of a list.

    So a file has about one line per record, and a difference between two files shows the records that differ.
    """
    line = json.dumps(content)
    if not isinstance(content, (dict, list)) or len(indent) + len(line) <= 120:
        return line
    if isinstance(content, dict):
        lines = [f"{indent} {json.dumps(str(key))}: {json_lines(item, indent + ' ')}" for key, item in content.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if all(isinstance(item, (int, float, str)) for item in content):
        return line
    items = (json.dumps(item) for item in content)
    lines = [
        f"{indent} {line if len(line) <= RECORD else json_lines(item, indent + ' ')}"
        for line, item in zip(items, content)
    ]
    return "[\n" + ",\n".join(lines) + f"\n{indent}]"


def without_nan(value):
    """Replace NaN and infinity, which JSON lacks, by None, in a record and all its parts."""
    if isinstance(value, dict):
        return {name: without_nan(part) for name, part in value.items()}
    if isinstance(value, list):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, content: object) -> None:
    """Write JSON, one record per line, to a temporary name that becomes ``path`` when everything is written."""
    with replacing(path) as partial_path:
        partial_path.write_text(json_lines(content) + "\n")


SAVED = "what was finished is saved, --resume goes on from there"


def print_error(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def run_command(main: Callable[[], None], saved: str = SAVED, say: Callable[[str], None] = print_error) -> None:
    """Run a command's main; end with one sentence and status 2 for wrong input, 1 for a RunError, 130 for Ctrl-C.

    ``saved`` says what is left of a run that has ended early.
    """
    try:
        main()
    except InputError as error:
        say(f"error: {error}")
        sys.exit(2)
    except RunError as failure:
        say(f"\nerror: {failure}; {saved}")
        sys.exit(1)
    except KeyboardInterrupt:
        say(f"\ninterrupted; {saved}")
        sys.exit(130)
