"""Arguments of constructors: checks of their values, and the options that modules of whole sequences share."""

import inspect
import numbers
import operator
from collections.abc import Callable
from typing import SupportsIndex, TypedDict, TypeVar

from .choice import BACKENDS

Init = TypeVar("Init", bound=Callable[..., None])


class ModuleOptions(TypedDict, total=False):
    """The options of all modules of whole sequences, by keyword; ``recurrent.Recurrent`` describes them."""

    backend: str
    recompute: bool
    variational: bool
    weight_drop: float
    zoneout: float
    zoneout_cell: float
    gradient_clip: float | None
    learn_initial_state: bool


def naming_options_of(parent: Callable) -> Callable[[Init], Init]:
    """Decorate an ``__init__`` that hands ``**options`` on to ``parent``, for ``help``: its signature names them.

    Type checkers read ``Unpack[ModuleOptions]`` instead.
    """

    def name_all(init: Init) -> Init:
        signature = inspect.signature(init)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        theirs = inspect.signature(parent).parameters
        options = [theirs[name].replace(kind=inspect.Parameter.KEYWORD_ONLY) for name in ModuleOptions.__annotations__]
        # set on the function, because subclasses would inherit the signature of a class
        init.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
        return init

    return name_all


def as_size(name: str, value: SupportsIndex) -> int:
    """Convert any integer, numpy's too, to an int; raise TypeError for anything else."""
    try:
        return int(operator.index(value))
    except TypeError:
        raise TypeError(f"{name} should be of type int, got: {type(value).__name__}") from None


def check_positive(**sizes: int) -> None:
    """Raise ValueError for a size that is not positive."""
    for name, value in sizes.items():
        if value <= 0:
            raise ValueError(f"{name} must be greater than zero, got {value}")


def check_bools(**values: bool) -> None:
    """Raise TypeError for a value that is not a bool."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")


def check_probabilities(**values: float) -> None:
    """Raise TypeError for a value that is nothing like a number, ValueError for one that is not from 0 to 1."""
    for name, value in values.items():
        float(value)  # TypeError, as from torch.nn
        if not isinstance(value, numbers.Real) or isinstance(value, bool) or not 0 <= value <= 1:
            raise ValueError(f"{name} should be a number in range [0, 1], a probability, got {value!r}")


def check_backend(backend: str) -> None:
    """Raise ValueError if no backend has this name; it need not run on this machine."""
    if backend != "auto" and backend not in BACKENDS:
        known = ", ".join(map(repr, BACKENDS))
        raise ValueError(f"unknown backend {backend!r}: expected 'auto' or one of {known}")
