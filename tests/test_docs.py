"""The reference page: everything public has a docstring, and the page can be made from them."""

import inspect
import re
import types
from collections.abc import Iterator

import pytest

import fused_rnn

MODULES = (fused_rnn, fused_rnn.cuda, fused_rnn.functional, fused_rnn.onnx, fused_rnn.reference)


def public(module: types.ModuleType) -> Iterator[tuple[str, object]]:
    """Yield name and object of everything that a module's page shows: functions, classes, and their members."""
    for name in module.__all__:
        thing = getattr(module, name)
        yield f"{module.__name__}.{name}", thing
        for parent in inspect.getmro(thing) if inspect.isclass(thing) else ():
            if parent.__module__.startswith("fused_rnn."):
                for attribute, value in vars(parent).items():
                    if not attribute.startswith("_") and isinstance(value, types.FunctionType | property):
                        yield f"{parent.__module__}.{parent.__name__}.{attribute}", value


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_everything_public_has_a_docstring(module):
    documented = (types.FunctionType, type, types.ModuleType, property)
    missing = {name for name, thing in public(module) if isinstance(thing, documented) and not thing.__doc__}
    assert missing == set()
    assert module.__doc__


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_docstrings_begin_with_a_sentence(module):
    """The sentence has a line of its own and ends in a full stop, because pages and editors show that line."""
    documented = {name: thing.__doc__ or "" for name, thing in public(module) if callable(thing)}
    assert {name for name, text in documented.items() if not re.match(r"\S.*[.:](\n\s*\n|\n?\s*$)", text)} == set()
