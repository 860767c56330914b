"""A training run and its folder: reads the data, finds the state of an interrupted run, trains cell after cell.

The folder holds a checkpoint per cell, from which everything else can be rebuilt: results.json, and the picture.
Nothing is written to it before all possible errors in the input have been checked.
"""

import argparse
import sys
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.common import InputError, check_backend
from benchmarks.cuda_graph import check_cuda_graph
from benchmarks.threads import settle_threads

from .alphabet import Alphabet
from .checkpoint import Checkpoint
from .corpus import Data, Sentences, make_alphabet, read
from .distributed import World
from .memory import check_fits
from .methods import Choices, continuations
from .model import MODULES, ModelConfig
from .observe import TensorBoard
from .report import describe_data, describe_epoch, draw_losses, write_results
from .signals import Signals, Stopped
from .train import Settings, Trainer, trial_step

PATHS = {"text", "valid", "test"}  # only the contents of the files must be the same
FREE_TO_CHANGE = {"epochs", *PATHS, "text_digest"}  # when a run is resumed; _check_texts explains another digest


def train_command(options: argparse.Namespace, world: World) -> None:
    """Train every requested cell, and leave results, a picture and a checkpoint per cell in ``--out``."""
    if options.batch % world.size:
        raise InputError(f"--batch {options.batch} cannot be shared evenly by {world.size} processes: give a multiple")
    device = world.device(options.device)
    check_backend(device, "bfloat16" if options.autocast else options.dtype, options.backend)
    if options.cuda_graph:
        check_cuda_graph(device, world.size)
    alphabet = make_alphabet(options.alphabet, options.text, options.limit)
    data = _read_data(options, alphabet)
    settings = _settings(options, data)
    checkpoints = world.from_first(lambda: _unfinished(options))
    configs = {cell: _model_config(options, cell, len(alphabet)) for cell in [*checkpoints, *options.cell]}
    for cell, checkpoint in checkpoints.items():
        _check_unchanged(_path(options, cell), checkpoint, alphabet, configs[cell], settings, world)
        _check_texts(_path(options, cell), checkpoint.training, settings, data)
    longest, share = data.training.longest(), options.batch // world.size
    for config in configs.values():
        check_fits(config, options.optimiser, longest, share, device, world.sharers(device))
    configuration = {**asdict(settings), **asdict(configs[options.cell[0]]), "cell": list(configs)}
    _check_agreed(world, configuration)
    run = {name: getattr(options, name) for name in ("command_line", "preset", "cuda_graph")}
    configuration = {**run, "processes": world.size, **configuration}
    if options.prompt is not None:
        alphabet.encode_prompt(options.prompt)  # raises for symbols that the model will not know
    if world.is_first:
        _make_folder(options.out)
        print(describe_data(data, alphabet.unit))
    if world.size == 1 or options.threads is not None:  # a trial of one does not tell how several share a machine
        first = partial(trial_step, configs[options.cell[0]], settings, alphabet, data)
        number = options.threads or _threads_before(checkpoints)
        if settled := settle_threads(number, torch.get_num_threads(), device, first):
            print(settled)

    with Signals() as signals, world.ending_together():
        for cell in dict.fromkeys(options.cell):
            last = checkpoints.get(cell)
            trainer = Trainer(configs[cell], settings, alphabet, data, last, world, signals, options.cuda_graph)
            _train_cell(options, trainer, configuration, checkpoints)
    if world.is_first:
        samples = {cell: _samples(checkpoint, options) for cell, checkpoint in checkpoints.items()}
        # again if no epoch was left to train, because the run ended just after saving its checkpoint
        write_results(options.out / "results.json", configuration, checkpoints, data, samples)
    print(f"results.json, losses.png and a checkpoint per cell are in {options.out}")


def _train_cell(
    options: argparse.Namespace, trainer: Trainer, configuration: dict, checkpoints: dict[str, Checkpoint]
) -> None:
    """Train one cell, saving each checkpoint; exit with the status that the shell expects if a signal stops it."""
    cell, data, world, unit = trainer.config.cell, trainer.data, trainer.world, trainer.alphabet.unit
    path = _path(options, cell)
    tensorboard = None
    if options.tensorboard and world.is_first:
        tensorboard = TensorBoard(options.out / "tensorboard" / cell, data.held_out)
    if cell in checkpoints:
        world.saved = _what_is_saved(path, checkpoints[cell])
    epochs = trainer.epochs
    try:
        for checkpoint in trainer.run(options.save_every, tensorboard and tensorboard.write):
            checkpoints[cell] = checkpoint
            world.from_first(partial(checkpoint.save, path))
            world.saved = _what_is_saved(path, checkpoint)
            if world.is_first and checkpoint.epochs != epochs:
                write_results(options.out / "results.json", configuration, checkpoints, data)
                tqdm.write(f"{cell} {describe_epoch(checkpoint.epochs[-1], unit)}")
            epochs = checkpoint.epochs
    except Stopped as stopped:
        world.say(f"\nstopped; {world.saved}")
        sys.exit(128 + stopped.number)
    if world.is_first:
        draw_losses(options.out / "losses.png", checkpoints, data, unit)


def _threads_before(checkpoints: dict[str, Checkpoint]) -> int | None:
    """Return the number of threads of the run to be continued; None without one, or if it is not recorded."""
    return next((checkpoint.training.get("threads") for checkpoint in checkpoints.values()), None)


def _samples(checkpoint: Checkpoint, options: argparse.Namespace) -> dict[str, str]:
    """Return a trained model's continuations of ``--prompt``, by method; empty without a prompt."""
    if options.prompt is None:
        return {}
    model = checkpoint.build_model(options.device, options.backend)
    return continuations(model, checkpoint.build_alphabet(), options.prompt, Choices(seed=options.seed))


def _read_data(options: argparse.Namespace, alphabet: Alphabet) -> Data:
    training = read(options.text, alphabet, options.max_length, options.bptt, options.limit)
    if options.held_out_from == "streams" and isinstance(training, Sentences):
        raise InputError(f"--held-out-from streams goes with streams, and --alphabet {alphabet.name} makes sentences")
    if options.valid is None and options.held_out_from == "streams":
        training, held_out = training.split_streams(options.held_out, options.batch)
    elif options.valid is None:
        training, held_out = training.split(options.held_out)
    else:
        held_out = read(options.valid, alphabet, options.max_length, options.bptt)
    if len(training) < training.least(options.batch):
        raise InputError(
            f"the text is shorter than one batch: it has {len(training)} {training.unit} to train on, and "
            f"{training.batch_options} is {training.least(options.batch)}"
        )
    test = None
    if options.test is not None:
        test = read(options.test, alphabet, options.max_length, options.bptt)
    return Data(training, held_out, test)


def _settings(options: argparse.Namespace, data: Data) -> Settings:
    files = {name: getattr(options, name) for name in ("text", "valid", "test")}
    names = {name: None if path is None else str(path) for name, path in files.items()}
    return Settings(**_from_options(Settings, options, **names, text_digest=data.digest()))


def _model_config(options: argparse.Namespace, cell: str, symbols: int) -> ModelConfig:
    embedding = options.embedding or options.hidden
    return ModelConfig(**_from_options(ModelConfig, options, cell=cell, symbols=symbols, embedding=embedding))


def _from_options(kind: type, options: argparse.Namespace, **given) -> dict:
    """Return a value for each field of the dataclass ``kind``: the one ``given``, or the option of the same name."""
    values = {**vars(options), **given}
    return {field.name: values[field.name] for field in fields(kind)}


def _what_is_saved(path: Path, checkpoint: Checkpoint) -> str:
    return f"--resume goes on from {path}, saved {checkpoint.describe_position()}"


def _check_agreed(world: World, configuration: dict) -> None:
    """Raise InputError if the processes, perhaps on several machines, were given different options or texts."""
    given = world.gather(configuration)
    names = [name for name in configuration if any(other[name] != given[0][name] for other in given)]
    different = [name for name in names if name not in PATHS]
    if different:
        raise InputError(f"the {world.size} processes must be given the same, but differ in {', '.join(different)}")


def _path(options: argparse.Namespace, cell: str) -> Path:
    return options.out / f"{cell}.pt"


def _unfinished(options: argparse.Namespace) -> dict[str, Checkpoint]:
    """Return the checkpoints to continue, by cell; raise InputError if ``--out`` holds files that must be kept."""
    paths = {cell: _path(options, cell) for cell in MODULES if _path(options, cell).exists()}
    results = (options.out / "results.json").exists()
    if not options.resume and (paths or results):
        raise InputError(f"{options.out} holds results already: go on from them with --resume, or give another --out")
    if results and not paths:
        raise InputError(f"{options.out} holds results, but no checkpoint to --resume from: give another --out")
    return {cell: Checkpoint.load(path) for cell, path in paths.items()}


def _check_unchanged(
    path: Path, checkpoint: Checkpoint, alphabet: Alphabet, config: ModelConfig, settings: Settings, world: World
) -> None:
    """Raise InputError if the run to be continued had other symbols, settings or processes, or is further already."""
    if checkpoint.alphabet["name"] == alphabet.name and checkpoint.alphabet["symbols"] != alphabet.symbols:
        before, now = (len(symbols) for symbols in (checkpoint.alphabet["symbols"], alphabet.symbols))
        raise InputError(
            f"the vocabulary of --text is not that of {path}: that has {before} {alphabet.unit}s and the text {now}, "
            "or others, or in another order of frequency"
        )
    before = {**checkpoint.model, **checkpoint.training}
    now = {**asdict(config), **asdict(settings)}
    changed = [name for name in now if name not in FREE_TO_CHANGE and now[name] != before.get(name)]
    if changed:
        named = ", ".join(f"{name} was {before.get(name)} and is now {now[name]}" for name in changed)
        raise InputError(f"{path} cannot be resumed with other settings: {named}")
    if (len(checkpoint.epochs), checkpoint.position["steps"]) > (settings.epochs, 0):
        raise InputError(f"{path} was saved {checkpoint.describe_position()}, --epochs is {settings.epochs}")
    if len(checkpoint.random) != world.size and (config.dropout or config.weight_drop):
        raise InputError(
            f"{path} was trained by {len(checkpoint.random)} processes, each with its own dropout, and cannot be "
            f"resumed by {world.size}"
        )


def _check_texts(path: Path, before: dict, settings: Settings, data: Data) -> None:
    """Raise InputError naming the texts that are not those of the run to be continued; ``before`` are its settings."""
    if before.get("text_digest") == settings.text_digest:
        return
    now = asdict(settings)
    changed = [
        f"--{name} was {before.get(name) or 'not given'} and is now {now[name] or 'not given'}"
        for name in ("valid", "test")
        if (before.get(name) is None) != (now[name] is None)
    ]
    if not changed:
        changed = [f"{name} is not the text that it was" for name in _other_texts(before, now, data)]
    raise InputError(f"{path} cannot be resumed: {', '.join(changed)}")


def _other_texts(before: dict, now: dict, data: Data) -> list[str]:
    """Name the options of which the text has changed."""
    if "digests" not in before:  # as in older checkpoints
        return ["one of --text, --valid and --test"]
    other = {name for name, digest in data.digests.items() if digest != before["digests"][name]}
    option = {"training": "text", "held_out": "text" if now["valid"] is None else "valid", "test": "test"}
    options = dict.fromkeys(option[name] for name in option if name in other)
    return [f"--{name} {now[name] or '(the standard library)'}" for name in options]


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {path} cannot be a folder: {error.strerror}") from None
