"""The output of a training run for people and programs: results.json, and one picture of all loss curves."""

import math
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.common import hardware, replacing, without_nan, write_json

from .alphabet import ALPHABETS
from .checkpoint import Checkpoint
from .corpus import Data, Sentences, Text
from .loss import in_units

LOSSES = {"train_loss": "train", "held_out_loss": "held out", "test_loss": "test"}  # names in epochs, and for people


def describe(nats: float, unit: str) -> str:
    bits, perplexity = in_units(nats, unit).values()
    return f"{nats:.4f} nats, {bits:.4f} bits per {unit}, perplexity {perplexity:.5g}"


def describe_epoch(epoch: dict, unit: str) -> str:
    """Format one line of log per loss of an epoch."""
    speed = f"{epoch['seconds']:.1f} s, {epoch['symbols_per_second']:,.0f} symbols/s"
    lines = [f"  {label:9}{describe(epoch[name], unit)}" for name, label in LOSSES.items() if name in epoch]
    return "\n".join([f"epoch {epoch['epoch']} ({speed})", *lines])


def describe_data(data: Data, unit: str) -> str:
    entropy = describe(data.training.unigram_entropy(), unit)
    training, held_out = (_describe_text(text) for text in (data.training, data.held_out))
    return f"{training} to train on, {held_out} held out\n  {'no model':9}{entropy} (symbol frequencies alone)"


def _describe_text(text: Text) -> str:
    symbols = f"{text.count():,} symbols"
    return f"{len(text):,} sentences of {symbols}" if isinstance(text, Sentences) else symbols


def write_results(
    path: Path,
    configuration: dict,
    checkpoints: dict[str, Checkpoint],
    data: Data,
    samples: dict[str, dict[str, str]] | None = None,
) -> None:
    """Write the state after the latest epoch of any cell; ``checkpoints`` and ``samples`` are by name of cell."""
    write_json(
        path,
        {
            "configuration": configuration,
            "hardware": hardware(),
            "data": {
                **_sizes("training", data.training),
                **_sizes("held_out", data.held_out),
                "unigram_entropy": data.training.unigram_entropy(),
            },
            "runs": [_run(cell, checkpoint, (samples or {}).get(cell)) for cell, checkpoint in checkpoints.items()],
        },
    )


def _sizes(name: str, text: Text) -> dict[str, int]:
    sentences = {f"{name}_sentences": len(text)} if isinstance(text, Sentences) else {}
    return {**sentences, f"{name}_symbols": text.count()}


def _run(cell: str, checkpoint: Checkpoint, samples: dict[str, str] | None) -> dict:
    weights = {weight.data_ptr(): weight.numel() for weight in checkpoint.weights.values()}  # tied weights count once
    unit = ALPHABETS[checkpoint.alphabet["name"]].unit
    epochs = [_with_units(epoch, unit) for epoch in checkpoint.epochs]
    said = {"samples": samples} if samples else {}
    return {"cell": cell, "parameters": sum(weights.values()), "epochs": epochs, **said}


def _with_units(epoch: dict, unit: str) -> dict:
    """Return an epoch's record, followed by its losses in the other units."""
    losses = {name.removesuffix("_loss"): in_units(epoch[name], unit) for name in LOSSES if name in epoch}
    others = {f"{name}_{unit}": value for name, units in losses.items() for unit, value in units.items()}
    return without_nan({**epoch, **others})


def draw_losses(path: Path, checkpoints: dict[str, Checkpoint], data: Data, unit: str) -> None:
    """Draw one picture: training (dashed) and held-out loss by epoch, a colour per cell, and the loss of no memory."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for number, (cell, checkpoint) in enumerate(checkpoints.items()):
        epochs = [epoch["epoch"] for epoch in checkpoint.epochs]
        for name, style, label in (("train_loss", "--", None), ("held_out_loss", "-", cell.replace("_", " "))):
            losses = [epoch[name] for epoch in checkpoint.epochs]
            axes.plot(epochs, losses, style, color=f"C{number}", marker="o", markersize=4, label=label)
    entropy = data.training.unigram_entropy()
    axes.axhline(entropy, color="grey", linestyle=":", label="frequencies alone (unigram entropy)")
    axes.plot([], [], "--", color="grey", label="dashed: training, as it went on")
    axes.set(xlabel="epoch", ylabel=f"loss (nats per {unit})", title="Language model: held-out and training loss")
    axes.xaxis.get_major_locator().set_params(integer=True)
    to_bits = axes.secondary_yaxis(
        "right", functions=(lambda nats: nats / math.log(2), lambda bits: bits * math.log(2))
    )
    to_bits.set_ylabel(f"bits per {unit}")
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as partial_path:
        figure.savefig(partial_path, format="png", dpi=120)
