"""Weights from and to Keras: the steps of Keras's layers, written in NumPy, give the outputs of our modules."""

import numpy as np
import pytest
import torch

import fused_rnn
from fused_rnn.keras import from_keras, to_keras

B, T, I, H = 3, 5, 4, 6
GATES = {"SimpleRNN": 1, "GRU": 3, "LSTM": 4}
LAYERS = [("SimpleRNN", None), ("LSTM", None), ("GRU", True), ("GRU", False)]
named = pytest.mark.parametrize(("kind", "reset_after"), LAYERS, ids=str)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def simple_rnn(x, h, c, W, U, b):
    return np.tanh(x @ W + h @ U + b), c


def lstm(x, h, c, W, U, b):
    i, f, g, o = np.split(x @ W + h @ U + b, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def gru_reset_after(x, h, c, W, U, b):
    x_z, x_r, x_n = np.split(x @ W + b[0], 3, axis=-1)
    h_z, h_r, h_n = np.split(h @ U + b[1], 3, axis=-1)
    z, r = sigmoid(x_z + h_z), sigmoid(x_r + h_r)
    return z * h + (1 - z) * np.tanh(x_n + r * h_n), c


def gru_reset_before(x, h, c, W, U, b):
    x_z, x_r, x_n = np.split(x @ W + b, 3, axis=-1)
    U_z, U_r, U_n = np.split(U, 3, axis=-1)
    z, r = sigmoid(x_z + h @ U_z), sigmoid(x_r + h @ U_r)
    return z * h + (1 - z) * np.tanh(x_n + (r * h) @ U_n), c


STEPS = {
    ("SimpleRNN", None): simple_rnn,
    ("LSTM", None): lstm,
    ("GRU", True): gru_reset_after,
    ("GRU", False): gru_reset_before,
}


def keras_outputs(kind, reset_after, x, arrays):
    """Return all outputs (B, T, H) of a Keras layer, in NumPy."""
    W, U, *bias = arrays
    b = bias[0] if bias else np.zeros((2, U.shape[1]) if reset_after else U.shape[1])
    h, c, outputs = np.zeros((B, H)), np.zeros((B, H)), []
    for t in range(T):
        h, c = STEPS[kind, reset_after](x[:, t], h, c, W, U, b)
        outputs.append(h)
    return np.stack(outputs, axis=1)


def draw(kind, reset_after, use_bias=True, seed=0):
    """Return arrays as layer.get_weights() does."""
    generator = np.random.default_rng(seed)
    rows = GATES[kind] * H
    shapes = [(I, rows), (H, rows), (2, rows) if reset_after else (rows,)][: 3 if use_bias else 2]
    return [generator.normal(size=shape) for shape in shapes]


def inputs():
    return np.random.default_rng(1).normal(size=(B, T, I))


@named
@pytest.mark.parametrize("use_bias", [True, False])
def test_a_module_gives_what_the_layer_gives(kind, reset_after, use_bias):
    arrays, x = draw(kind, reset_after, use_bias), inputs()
    module = from_keras(arrays, reset_after=reset_after)
    output, _ = module(torch.from_numpy(x))
    np.testing.assert_allclose(output.detach().numpy(), keras_outputs(kind, reset_after, x, arrays), rtol=0, atol=1e-12)


@named
def test_a_bidirectional_layer(kind, reset_after):
    forward, backward = draw(kind, reset_after, seed=2), draw(kind, reset_after, seed=3)
    x = inputs()
    output, _ = from_keras([*forward, *backward])(torch.from_numpy(x))
    reverse = keras_outputs(kind, reset_after, x[:, ::-1], backward)[:, ::-1]
    expected = np.concatenate([keras_outputs(kind, reset_after, x, forward), reverse], axis=-1)
    np.testing.assert_allclose(output.detach().numpy(), expected, rtol=0, atol=1e-12)


@named
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("use_bias", [True, False])
def test_the_way_there_and_back_changes_nothing(kind, reset_after, use_bias, directions):
    arrays = [array for seed in range(directions) for array in draw(kind, reset_after, use_bias, seed)]
    back = to_keras(from_keras(arrays, reset_after=reset_after))
    assert len(back) == len(arrays)
    for before, after in zip(arrays, back):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("module", [fused_rnn.LSTM(I, H), fused_rnn.GRU(I, H), fused_rnn.GRU(I, H, reset_after=False)])
def test_the_way_back_and_there_gives_the_same_outputs(module):
    again = from_keras(to_keras(module), batch_first=False)
    x = torch.randn(T, B, I)
    assert type(again) is type(module)
    torch.testing.assert_close(again(x)[0], module(x)[0])  # two biases may have become one


def test_options_go_to_the_module():
    options = {"batch_first": False, "backend": "reference", "dtype": torch.float32}
    module = from_keras(draw("SimpleRNN", None), nonlinearity="relu", **options)
    assert (module.batch_first, module.backend, module.nonlinearity) == (False, "reference", "relu")
    assert module.weight_ih_l0.dtype == torch.float32


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        (draw("LSTM", None)[:1], {}, "got 1 arrays"),
        (draw("LSTM", None) * 3, {}, "got 9 arrays"),
        ([np.zeros((4, 12)), np.zeros((6, 12))], {}, r"G = 1, 3 or 4 .* got \(4, 12\) and \(6, 12\)"),
        ([np.zeros((4, 18)), np.zeros((6, 24))], {}, r"got \(4, 18\) and \(6, 24\)"),
        ([np.zeros(4), np.zeros((6, 24))], {}, r"got \(4,\) and \(6, 24\)"),
        (draw("GRU", True, use_bias=False), {}, "tells reset_after: pass it"),
        (draw("GRU", True), {"reset_after": False}, r"a bias of shape \(2, 18\) means True"),
        (draw("LSTM", None), {"reset_after": True}, "reset_after is an option of GRUs"),
        (draw("LSTM", None), {"num_layers": 2}, "num_layers is not an option here"),
        (draw("LSTM", None), {"bias": False}, "bias is not an option here"),
        ([*draw("LSTM", None)[:2], np.zeros(5)], {}, r"bias must be \(24,\) with such a kernel, got \(5,\)"),
        ([*draw("LSTM", None)[:2], np.zeros((2, 24))], {}, r"bias must be \(24,\) .* got \(2, 24\)"),
        ([*draw("GRU", True)[:2], np.zeros((3, 18))], {}, r"bias must be \(2, 18\) .* got \(3, 18\)"),
        ([*draw("GRU", False), *draw("GRU", True)], {}, r"bias must be \(18,\) .* got \(2, 18\)"),
        ([*draw("LSTM", None, use_bias=False), *draw("GRU", True, use_bias=False)], {}, "together: weight_ih would be"),
    ],
)
def test_arrays_that_are_no_layer_are_refused(arrays, options, message):
    with pytest.raises(ValueError, match=message):
        from_keras(arrays, **options)


def test_bfloat16_becomes_float32():
    module = fused_rnn.GRU(I, H, dtype=torch.bfloat16)
    assert {array.dtype for array in to_keras(module)} == {np.dtype("float32")}
    again = from_keras(to_keras(module), dtype=torch.bfloat16)
    assert all(map(torch.equal, module.parameters(), again.parameters()))


def test_modules_that_keras_lacks_are_refused():
    with pytest.raises(TypeError, match="this is a MultiplicativeLSTM"):
        to_keras(fused_rnn.MultiplicativeLSTM(I, H))
    with pytest.raises(ValueError, match="this module has 2"):
        to_keras(fused_rnn.LSTM(I, H, num_layers=2))
    with pytest.raises(ValueError, match="this module has proj_size=2"):
        to_keras(fused_rnn.LSTM(I, H, proj_size=2))


@named
@pytest.mark.parametrize("directions", [1, 2])
def test_keras_agrees(kind, reset_after, directions, monkeypatch):
    """The layers of Keras itself agree, if it is installed; the tests do not depend on it."""
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    options = {"return_sequences": True, "dtype": "float64", "bias_initializer": "normal"}
    options |= {} if reset_after is None else {"reset_after": reset_after}
    layer = getattr(keras.layers, kind)(H, **options)
    layer = keras.layers.Bidirectional(layer, dtype="float64") if directions == 2 else layer
    x = torch.from_numpy(inputs())
    expected = layer(x)
    module = from_keras(layer.get_weights())
    close = {"rtol": 1e-5, "atol": 1e-6}  # some of its layers compute in float32 whatever they are told
    torch.testing.assert_close(module(x)[0], expected, **close)
    layer.set_weights(to_keras(module))
    torch.testing.assert_close(layer(x), expected, **close)
