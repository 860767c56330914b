"""The requirements of serving: one graph for all lengths, export, states carried over chunks, calls from threads."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.export import Dim, export

import fused_rnn

from .conftest import relative_error, threads
from .test_cell_modules import CELLS, parts
from .test_modules import MODULES, H, I, flat

LAYERS = 2


def inputs(steps: int, batch: int, dtype=torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(steps, batch, I, dtype=dtype, generator=torch.Generator().manual_seed(seed))


# torch.compile and torch.export -----------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"learn_initial_state": True}, {}], ids=["learnt-states", "states-and-lengths"])
def test_one_graph_serves_every_length(options):
    """Forward and backward are compiled once for all T and B."""
    nodes = []

    def count(graph, _):
        nodes.append(len(graph.graph.nodes))
        return make_boxed_func(graph.forward)

    module = fused_rnn.GRU(I, H, LAYERS, weight_drop=0.5, **options)
    how = {"fullgraph": True, "dynamic": True, "backend": aot_autograd(fw_compiler=count, bw_compiler=count)}
    compiled = torch.compile(module, **how)
    for steps, batch in ((3, 4), (400, 5), (7, 11)):  # the first sizes differ: the compiler ties equal ones
        x = inputs(steps, batch).requires_grad_()
        given = {} if options else {"hx": torch.randn(LAYERS, batch, H), "lengths": torch.arange(batch) % steps}
        outcomes = []
        for call in (module, compiled):
            torch.manual_seed(0)
            results = flat(call(x, **given))
            loss = sum(r.square().sum() for r in results)
            outcomes.append([*results, *torch.autograd.grad(loss, [x, *module.parameters()])])
        for a, b in zip(*outcomes):
            torch.testing.assert_close(a, b)
    assert len(nodes) == 2  # forward and backward


def test_the_graph_does_not_grow_with_the_steps():
    """Graphs compiled for a short and for a long T have the same number of nodes, so no step is unrolled."""
    sizes = []

    def count(graph, _):
        sizes[-1].append(len(graph.graph.nodes))
        return make_boxed_func(graph.forward)

    module = fused_rnn.MultiplicativeLSTM(I, H)
    for steps in (2, 300):
        torch._dynamo.reset()
        sizes.append([])
        how = {"fullgraph": True, "dynamic": False, "backend": aot_autograd(fw_compiler=count, bw_compiler=count)}
        torch.compile(module, **how)(inputs(steps, 3))[0].sum().backward()
    assert sizes[0] == sizes[1]
    assert len(sizes[0]) == 2


EXPORTED = {
    "plain": ("gru", {}, False),
    "projected-strict": ("lstm", {"proj_size": 3}, True),
    "options-strict": ("multiplicative_lstm", {"learn_initial_state": True, "dropout": 0.5, "variational": True}, True),
}


@pytest.mark.parametrize(("cell", "options", "strict"), EXPORTED.values(), ids=EXPORTED)
def test_exports_with_any_number_of_steps_and_sequences(cell, options, strict, tmp_path):
    """The program is exported in eval mode; saved and loaded, it takes other sizes and lengths."""
    module = MODULES[cell](I, H, LAYERS, bidirectional=True, weight_drop=0.5, batch_first=True, **options).eval()
    sizes = {"input": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, "lengths": {0: Dim.DYNAMIC}}
    example = inputs(3, 6), None, torch.tensor([6, 2, 5])  # (B, T, I)
    program = export(module, example, dynamic_shapes={**sizes, "hx": None}, strict=strict)
    assert not any("dropout" in str(node.target) for node in program.graph.nodes)
    torch.export.save(program, tmp_path / "module.pt2")
    loaded = torch.export.load(tmp_path / "module.pt2").module()
    for steps, batch in ((11, 4), (2, 7)):
        x, lengths = inputs(batch, steps), torch.arange(batch) % (steps + 1)
        for a, b in zip(flat(loaded(x, None, lengths)), flat(module(x, None, lengths))):
            assert torch.equal(a, b)


def test_exports_with_states():
    """A streaming server passes a chunk and its states, and gets outputs and states."""
    module = fused_rnn.LSTM(I, H, LAYERS).eval()
    state = torch.zeros(LAYERS, 3, H), torch.zeros(LAYERS, 3, H)
    sizes = {"input": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, "hx": ({1: Dim.DYNAMIC}, {1: Dim.DYNAMIC})}
    program = export(module, (inputs(6, 3), state), dynamic_shapes=sizes).module()
    x, state = inputs(20, 2), (torch.zeros(LAYERS, 2, H),) * 2
    outputs = []
    for chunk in x.split([7, 2, 11]):
        output, state = program(chunk, state)
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs), module(x)[0])


# Streaming --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*MODULES, "projected"])
def test_chunks_make_the_sequence(name, backend):
    """Chunks of 1 or more steps that hand on the state give one call's outputs, states and gradients."""
    torch.manual_seed(0)
    kind, options = (MODULES["lstm"], {"proj_size": 3}) if name == "projected" else (MODULES[name], {})
    module = kind(I, H, 3, dtype=torch.float64, backend=backend, **options)
    x = inputs(23, 4, torch.float64).requires_grad_()
    expected = flat(module(x))
    state, outputs = None, []
    for chunk in x.split([1, 9, 1, 12]):
        output, state = module(chunk, state)
        outputs.append(output)
    results = flat((torch.cat(outputs), state))
    leaves = [x, *module.parameters()]
    gradients = [torch.autograd.grad(sum(r.square().sum() for r in run), leaves) for run in (results, expected)]
    assert relative_error([*results, *gradients[0]], [*expected, *gradients[1]]) < 1e-12


@pytest.mark.parametrize("name", MODULES)
def test_sequences_that_end_in_different_chunks(name, backend):
    """A sequence that has ended keeps its state through later chunks, where its length is 0."""
    module = MODULES[name](I, H, LAYERS, dtype=torch.float64, backend=backend)
    x, lengths = inputs(12, 4, torch.float64), torch.tensor([12, 5, 0, 7])
    expected = flat(module(x, lengths=lengths))
    state, outputs = None, []
    for begin in range(0, 12, 4):
        output, state = module(x[begin : begin + 4], state, lengths=(lengths - begin).clamp(0, 4))
        outputs.append(output)
    assert relative_error(flat((torch.cat(outputs), state)), expected) < 1e-12


# Threads ----------------------------------------------------------------------------------------------------

THREADS = 4


@pytest.fixture(params=[1, 2])
def threads_of_torch(request) -> Iterator[None]:
    """Set the threads that one call uses; new Python threads inherit the number."""
    with threads(request.param):
        yield


def in_threads(tasks: list) -> list:
    """Return the results of tasks that run in a thread each and begin together."""
    barrier = threading.Barrier(len(tasks))

    def run(task):
        barrier.wait()
        return task()

    with ThreadPoolExecutor(len(tasks)) as pool:
        return list(pool.map(run, tasks))


@pytest.mark.usefixtures("threads_of_torch")
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("shared", [True, False], ids=["one-module", "a-module-each"])
def test_threads_infer_at_once(name, shared, backend):
    """Concurrent calls give the bits of consecutive ones; shapes differ, so shared scratch memory would be mixed up."""
    modules = [MODULES[name](I, 40, LAYERS, backend=backend).eval() for _ in range(1 if shared else THREADS)] * THREADS
    calls = [(modules[n], [inputs(30 + 7 * n, 3 + n, seed=10 * n + k) for k in range(5)]) for n in range(THREADS)]

    def infer(module: nn.Module, xs: list[Tensor]) -> list[Tensor]:
        with torch.inference_mode():
            return [result for x in xs for result in flat(module(x))]

    expected = [infer(*call) for call in calls]
    for given, exact in zip(in_threads([lambda call=call: infer(*call) for call in calls]), expected):
        assert all(torch.equal(a, b) for a, b in zip(given, exact))


@pytest.mark.usefixtures("threads_of_torch")
@pytest.mark.parametrize("name", MODULES)
def test_threads_train_at_once(name, backend):
    """Each thread has its own module, and runs backward too."""
    modules = [MODULES[name](I, 40, backend=backend) for _ in range(THREADS)]

    def train(n: int) -> list[Tensor]:
        gradients = []
        for k in range(3):
            loss = modules[n](inputs(30 + 7 * n, 3 + n, seed=k))[0].square().sum()
            gradients += torch.autograd.grad(loss, list(modules[n].parameters()))
        return gradients

    expected = [train(n) for n in range(THREADS)]
    for given, exact in zip(in_threads([lambda n=n: train(n) for n in range(THREADS)]), expected):
        assert all(torch.equal(a, b) for a, b in zip(given, exact))


def test_threads_step_at_once(backend):
    """Threads run single steps of one cell, each on its own stream of data."""
    cell = CELLS["lstm"](I, H, backend=backend).eval()

    def stream(n: int) -> list[Tensor]:
        state = None
        with torch.inference_mode():
            for step in inputs(40, 2, seed=n):
                state = cell(step, state)
        return list(parts(state))

    expected = [stream(n) for n in range(THREADS)]
    for given, exact in zip(in_threads([lambda n=n: stream(n) for n in range(THREADS)]), expected):
        assert all(torch.equal(a, b) for a, b in zip(given, exact))
