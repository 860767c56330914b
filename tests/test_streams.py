"""Both directions at the same time, on mock streams: the order of fork, calls and join, and which memory is recorded.

The CPU stands in for the GPU here, with streams that only log calls. Only a GPU can show that nothing is read before
it is written or after it is overwritten: ``gpu/test_streams.py``.
"""

import contextlib

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import fused_rnn
from fused_rnn import ops, streams

from .conftest import random_like

T, B, I, H = 5, 4, 3, 6


class Streams:
    """Mock streams in place of torch's: the current one, a log of calls, and the tensors that were recorded."""

    def __init__(self, monkeypatch) -> None:
        self.log: list[tuple] = []
        self.recorded: dict[str, set[int]] = {}
        self.created = 0
        log = self.log
        everything = self

        class Stream:
            device, priority = torch.device("cpu"), -1

            def __init__(self, device=None, priority=0) -> None:
                assert (device, priority) == (self.device, self.priority)
                everything.created += 1
                self.name = f"side {everything.created}"

            def wait_stream(self, other) -> None:
                log.append((self.name, "waits for", other.name))

        self.kind = Stream
        self.current = self.new("current")
        monkeypatch.setenv(streams.WANTED, "1")
        monkeypatch.setattr(streams, "_DEVICES", "cpu")
        monkeypatch.setattr(streams, "_SIDES", {})
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.current)
        monkeypatch.setattr(torch.cuda, "stream", self.on)
        monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: self._record(tensor, stream.name))
        run = ops.run

        def logged(*operands, **options):
            log.append(("backwards" if options["reverse"] else "forwards", "runs on", self.current.name))
            self.operands = operands, options
            return run(*operands, **options)

        monkeypatch.setattr(ops, "run", logged)

    def new(self, name: str):
        stream = self.kind.__new__(self.kind)
        stream.name = name
        return stream

    @contextlib.contextmanager
    def on(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def _record(self, tensor: Tensor, name: str) -> None:
        self.recorded.setdefault(name, set()).add(tensor.untyped_storage().data_ptr())

    def have_recorded(self, tensor: Tensor, name: str) -> bool:
        return tensor.untyped_storage().data_ptr() in self.recorded.get(name, ())


@pytest.fixture
def mock(monkeypatch) -> Streams:
    return Streams(monkeypatch)


FORK, JOIN = ("side 1", "waits for", "current"), ("current", "waits for", "side 1")
FORWARDS, BACKWARDS = ("forwards", "runs on", "current"), ("backwards", "runs on", "side 1")


@pytest.mark.parametrize("gradients", [True, False])
def test_forks_and_joins_around_both_directions_of_each_layer(mock, gradients):
    with torch.set_grad_enabled(gradients):
        fused_rnn.GRU(I, H, 2, bidirectional=True)(torch.randn(T, B, I))
    assert mock.log == 2 * [FORK, FORWARDS, BACKWARDS, JOIN]
    assert mock.current.name == "current"


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
def test_joins_after_an_error(mock, monkeypatch, reverse):
    run = ops.run

    def failing(*operands, **options):
        result = run(*operands, **options)
        if options["reverse"] == reverse:
            raise RuntimeError("one direction fails")
        return result

    monkeypatch.setattr(ops, "run", failing)
    with pytest.raises(RuntimeError, match="one direction fails"):
        fused_rnn.GRU(I, H, bidirectional=True)(torch.randn(T, B, I))
    assert mock.log == [FORK, FORWARDS, *([BACKWARDS] if reverse else []), JOIN]
    assert mock.current.name == "current"


CASES = {
    "lstm": ("LSTM", {}, {}),
    "drops": ("LSTM", {"weight_drop": 0.5, "zoneout": 0.3, "zoneout_cell": 0.2, "dropout": 0.5}, {}),
    "lengths": ("GRU", {"learn_initial_state": True}, {"lengths": torch.tensor([3, 5, 0, 1])}),
    "projected": ("LSTM", {"proj_size": 2}, {"return_cells": True}),
    "recompute": ("MultiplicativeLSTM", {"recompute": True}, {}),
    "packed": ("LSTM", {}, {"return_cells": True}),
}


@pytest.mark.parametrize(("name", "options", "call"), CASES.values(), ids=CASES)
def test_same_bits_as_one_after_the_other(mock, monkeypatch, request, name, options, call):
    """Random numbers are drawn in the same order, too."""
    module = getattr(fused_rnn, name)(I, H, 2, bidirectional=True, **options)
    x = torch.randn(9, B, I)
    packed = pack_padded_sequence(x, torch.tensor([9, 2, 1, 1])) if "packed" in request.node.name else None

    def outcome() -> list[Tensor]:
        torch.manual_seed(3)
        output, state, *cells = module(x if packed is None else packed, **call)
        results = [output, *(state if isinstance(state, tuple) else (state,)), *cells]
        results = [result if isinstance(result, Tensor) else result.data for result in results]
        gradients = torch.autograd.grad(results, list(module.parameters()), random_like(results))
        return [*results, *gradients]

    at_once = outcome()
    assert mock.log.count(FORK) == mock.log.count(JOIN) == 2
    monkeypatch.setattr(streams, "can_fork", lambda *_: False)
    mock.log.clear()
    alone = outcome()
    assert FORK not in mock.log
    assert all(torch.equal(a, b) for a, b in zip(at_once, alone))


def test_the_side_stream_is_recorded_for_what_autograd_saves(mock):
    """Every operand is recorded, wherever it came from."""
    module = fused_rnn.LSTM(I, H, bidirectional=True, weight_drop=0.5, zoneout=0.3, zoneout_cell=0.2)
    state = torch.randn(2, B, H), torch.randn(2, B, H)
    module(torch.randn(T, B, I), state, lengths=torch.tensor([3, 5, 0, 1]))
    (_, input, (h_0, c_0), weights), options = mock.operands
    tensors = [input, h_0, c_0, *weights.values(), *(options[name] for name in ("lengths", "keep_h", "keep_c"))]
    assert len(tensors) == 10
    assert all(mock.have_recorded(t, "side 1") for t in tensors)


def test_nothing_is_recorded_for_the_side_stream_without_gradients(mock):
    """The join makes it safe, and recording would delay the reuse of memory."""
    with torch.no_grad():
        fused_rnn.LSTM(I, H, bidirectional=True)(torch.randn(T, B, I))
    assert list(mock.recorded) == ["current"]


@pytest.mark.parametrize("gradients", [True, False])
def test_the_current_stream_is_recorded_for_what_the_side_stream_gives(mock, monkeypatch, gradients):
    run, given = ops.run, []

    def keeping(*operands, **options):
        output, state, cells = result = run(*operands, **options)
        given.append((output, *state, cells))
        return result

    monkeypatch.setattr(ops, "run", keeping)
    with torch.set_grad_enabled(gradients):
        fused_rnn.LSTM(I, H, bidirectional=True)(torch.randn(T, B, I), return_cells=True)
    forwards, backwards = given
    assert [mock.have_recorded(t, "current") for t in backwards] == [True] * 4
    assert not any(mock.have_recorded(t, "current") for t in forwards)


def test_gradients_are_accumulated_on_the_current_stream(mock):
    """The direction on the side stream gets views, whose nodes are on the current stream like the parameters' own."""
    module = fused_rnn.LSTM(I, H, bidirectional=True)
    x = torch.randn(T, B, I, requires_grad=True)
    module(x)
    _, input, _, weights = mock.operands[0]
    for given, leaf in [(input, x), *((weights[name], getattr(module, f"{name}_l0_reverse")) for name in weights)]:
        assert given.grad_fn.next_functions[0][0].variable is leaf


def test_autograd_queues_both_directions_before_it_waits(mock, monkeypatch):
    """Nodes run from the highest number to the lowest: both directions, then the views, which wait for one of them."""
    run, numbers = ops.run, []

    def keeping(*operands, **options):
        result = run(*operands, **options)
        numbers.append(result[0].grad_fn._sequence_nr())
        return result

    monkeypatch.setattr(ops, "run", keeping)
    fused_rnn.LSTM(I, H, bidirectional=True)(torch.randn(T, B, I))
    views = [weight.grad_fn._sequence_nr() for weight in mock.operands[0][3].values()]
    assert max(views) < min(numbers)


def test_one_side_stream_for_each_current_stream(mock):
    module, x = fused_rnn.GRU(I, H, bidirectional=True), torch.randn(T, B, I)
    for _ in range(3):
        module(x)
    with mock.on(mock.new("other")):
        module(x)
    assert {entry[-1] for entry in mock.log if entry[0] == "backwards"} == {"side 1", "side 2"}
    assert mock.created == 2


def test_a_stream_is_not_its_own_side_stream(mock, monkeypatch):
    """torch hands out 32 streams again and again, so the next one may be the current one."""
    dealt = [mock.current, mock.new("side 1")]
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority: dealt.pop(0))
    fused_rnn.GRU(I, H, bidirectional=True)(torch.randn(T, B, I))
    assert mock.log == [FORK, FORWARDS, BACKWARDS, JOIN]


class Subclass(Tensor):
    """A tensor that may stand for others."""


def dual(module, x: Tensor) -> None:
    with torch.autograd.forward_ad.dual_level():
        module(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))


def fake(module, x: Tensor) -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        module(torch.randn(T, B, I))


def fake_without_its_mode(module, x: Tensor) -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    module(mode.from_tensor(x))


def saved_elsewhere(module, x: Tensor) -> None:
    with torch.autograd.graph.save_on_cpu():
        module(x)


ONE_AFTER_THE_OTHER = {
    "compile": lambda module, x: torch.compile(module, fullgraph=True, backend="eager")(x),
    "export": lambda module, x: torch.export.export(module, (x,)),
    "trace": lambda module, x: torch.jit.trace(module, x, check_trace=False),
    "make_fx": lambda module, x: make_fx(lambda x: module(x)[0])(x),
    "fake": fake,
    "fake-without-its-mode": fake_without_its_mode,
    "subclass": lambda module, x: module(x.as_subclass(Subclass)),
    "vmap": lambda module, x: torch.func.vmap(lambda x: module(x.unsqueeze(1))[0], 1)(x),
    "grad": lambda module, x: torch.func.grad(lambda x: module(x)[0].sum())(x),
    "dual": dual,
    "checkpoint": lambda module, x: checkpoint(module, x, use_reentrant=False)[0].sum().backward(),
    "saved-elsewhere": saved_elsewhere,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("call", ONE_AFTER_THE_OTHER.values(), ids=ONE_AFTER_THE_OTHER)
def test_one_after_the_other_where_streams_are_not_seen_or_not_safe(mock, call):
    module, x = fused_rnn.GRU(I, H, bidirectional=True), torch.randn(T, B, I)
    module(x)
    assert FORK in mock.log
    mock.log.clear()
    call(module, x)
    assert FORK not in mock.log
    assert JOIN not in mock.log


@pytest.mark.parametrize(("value", "long"), [(None, T * H + 1), ("0", 1), ("", T * H + 1)])
def test_one_after_the_other_unless_it_is_wanted(mock, monkeypatch, value, long):
    monkeypatch.delenv(streams.WANTED) if value is None else monkeypatch.setenv(streams.WANTED, value)
    monkeypatch.setattr(streams, "LONG", long)
    fused_rnn.LSTM(I, H, bidirectional=True)(torch.randn(T, B, I))
    assert [entry[0] for entry in mock.log] == ["forwards", "backwards"]
    assert mock.created == 0


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_long_calls_run_both_at_once(mock, monkeypatch, packed):
    """The length of a packed sequence, which runs in stretches, is that of all stretches together."""
    monkeypatch.delenv(streams.WANTED)
    monkeypatch.setattr(streams, "LONG", 9 * H)
    x = torch.randn(9, B, I)
    fused_rnn.LSTM(I, H, bidirectional=True)(pack_padded_sequence(x, torch.tensor([9, 2, 1, 1])) if packed else x)
    assert mock.log[0] == FORK
    assert mock.log[-1] == JOIN


def test_other_words_for_it_are_refused(mock, monkeypatch):
    monkeypatch.setenv(streams.WANTED, "yes")
    with pytest.raises(ValueError, match="FUSED_RNN_TWO_STREAMS in the environment must be 1 .* got 'yes'"):
        fused_rnn.LSTM(I, H, bidirectional=True)(torch.randn(T, B, I))


def test_one_direction_touches_no_stream(mock):
    fused_rnn.GRU(I, H, 2, batch_first=True)(torch.randn(T, B, I))
    assert mock.log == 2 * [FORWARDS]


def test_the_cpu_touches_no_stream(mock, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv(streams.WANTED, "1")
    for name in ("Stream", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, None)
    fused_rnn.GRU(I, H, bidirectional=True)(torch.randn(T, B, I))


def test_lengths_elsewhere_are_refused_in_words(mock):
    """Memory on another device is not recorded, and the call raises its usual error."""
    with pytest.raises(RuntimeError, match="lengths is on meta but input is on cpu"):
        fused_rnn.GRU(I, H, bidirectional=True)(
            torch.randn(T, B, I), lengths=torch.ones(B, dtype=torch.int64).to("meta")
        )
