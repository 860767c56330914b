"""The right and wrong inputs with which PyTorch tests its own recurrent modules, given to ours.

They come from ``torch.testing._internal``, which needs the package expecttest.
"""

from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fused_rnn

CLASSES = [nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell]
DTYPE = torch.float64


@pytest.fixture(scope="module")
def database():
    """Return PyTorch's entry for each module, and its enumeration of the calls that refuse wrong inputs."""
    pytest.importorskip("expecttest", reason="torch.testing._internal needs expecttest")
    # its import would forbid all tests of this process to set torch.backends' flags
    with mock.patch.object(torch.backends, "disable_global_flags"):
        from torch.testing._internal import common_modules
    return {entry.module_cls: entry for entry in common_modules.module_db}, common_modules.ModuleErrorEnum


def tensors(values) -> list[Tensor]:
    """Return all tensors of nested tuples in order, and the data of packed sequences."""
    if isinstance(values, PackedSequence):
        return [values.data]
    if isinstance(values, Tensor):
        return [values]
    return [t for value in values or () for t in tensors(value)]


def results_and_gradients(module: nn.Module, call) -> list[Tensor]:
    results = tensors(module(*call.args, **call.kwargs))
    leaves = [t for t in tensors(call.args) if t.requires_grad] + list(module.parameters())
    assert len(leaves) > len(list(module.parameters()))
    return [*results, *torch.autograd.grad(sum(r.sin().sum() for r in results), leaves)]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("theirs", CLASSES, ids=lambda cls: cls.__name__)
def test_module_inputs(theirs, training, database, backend):
    entry = database[0][theirs]
    options = {"with_packed_sequence": True} if theirs in (nn.RNN, nn.GRU) else {}
    how = {"device": "cpu", "dtype": DTYPE, "requires_grad": True, "training": training}
    samples = list(entry.module_inputs_func(entry, **how, **options))
    assert len(samples) >= 2
    for sample in samples:
        made, outcomes = sample.constructor_input, []
        for cls, extra in ((theirs, {}), (getattr(fused_rnn, theirs.__name__), {"backend": backend})):
            torch.manual_seed(0)
            module = cls(*made.args, **made.kwargs, dtype=DTYPE, **extra).train(training)
            outcomes.append(results_and_gradients(module, sample.forward_input))
        for expected, given in zip(*outcomes):
            assert given.shape == expected.shape
            torch.testing.assert_close(given, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("theirs", CLASSES, ids=lambda cls: cls.__name__)
def test_module_error_inputs(theirs, database):
    """Ours raise PyTorch's own exception types, with its words as far as PyTorch tests them."""
    entries, where = database
    entry = entries[theirs]
    samples = entry.module_error_inputs_func(
        entry, device="cpu", dtype=torch.float32, requires_grad=False, training=True
    )
    assert samples
    for sample in samples:
        made, call = sample.module_error_input.constructor_input, sample.module_error_input.forward_input
        cls = getattr(fused_rnn, theirs.__name__)
        if sample.error_on == where.CONSTRUCTION_ERROR:
            with pytest.raises(sample.error_type, match=sample.error_regex):
                cls(*made.args, **made.kwargs)
        else:
            module = cls(*made.args, **made.kwargs)
            with pytest.raises(sample.error_type, match=sample.error_regex):
                module(*call.args, **call.kwargs)
