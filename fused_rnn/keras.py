"""Conversion of weights from and to Keras's SimpleRNN, LSTM and GRU, as ``layer.get_weights()`` returns them.

Keras multiplies from the right, x W + h₋ U + b, so its matrices are the transposes of ours. Its steps are

* SimpleRNN: h = tanh(x W + h₋ U + b), the RNN here;
* LSTM, gates in the order i, f, c, o: i, f, o = σ(x W + h₋ U + b); g = tanh(x W + h₋ U + b); c = f⊙c₋ + i⊙g;
  h = o⊙tanh(c), the LSTM here, which calls Keras's gate c g;
* GRU, gates in the order z, r, h: z, r = σ(x W + h₋ U + b); with ``reset_after=True``
  h̃ = tanh(x W + b + r⊙(h₋ U + b')), which is torch.nn's GRU, with ``reset_after=False``
  h̃ = tanh(x W + (r⊙h₋) U + b); then h = z⊙h₋ + (1−z)⊙h̃.

The last line agrees with the reset-after GRU here, but the reset-before GRU here follows Chung et al. 2014,
h = (1−z)⊙h₋ + z⊙n. Since 1 − σ(a) = σ(−a), negating the weights and bias of z converts one into the other, exactly.

Equations: the code of keras.layers.LSTMCell and GRUCell, with the default activations.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .modules import GRU, LSTM, RNN
from .recurrent import Recurrent

__all__ = ["from_keras", "to_keras"]

_MODULES: dict[int, type[RNN] | type[LSTM] | type[GRU]] = {1: RNN, 3: GRU, 4: LSTM}  # by number of gates
_FROM_WEIGHTS = ("input_size", "hidden_size", "num_layers", "bias", "bidirectional", "proj_size")


def from_keras(weights: Sequence[Any], *, reset_after: bool | None = None, **options: Any) -> RNN | LSTM | GRU:
    """Build a module of one layer with the weights of a Keras layer.

    The order of the gates changes and, for ``reset_after=False``, the sign of z: see ``fused_rnn/keras.py``.

    Args:
        weights: ``layer.get_weights()`` of SimpleRNN, LSTM or GRU: kernel (I, G*H), recurrent_kernel (H, G*H) and,
            unless ``use_bias=False``, bias (G*H), or (2, G*H) in the GRU with ``reset_after=True``. G determines the
            kind of layer. A Bidirectional layer has the arrays of the forward layer, then of the backward layer.
        reset_after: needed for a GRU without bias, whose weights do not tell; otherwise checked if given.
        options: options of the module, such as ``backend``. ``batch_first`` defaults to True, as in Keras, and
            ``dtype`` to that of the kernel.

    Raises:
        ValueError: the number or the shapes of the arrays are not those of such a layer, ``reset_after`` contradicts
            them, or an option is one that they determine, such as ``num_layers``.
    """
    for name in _FROM_WEIGHTS:
        if name in options:
            raise ValueError(f"{name} is not an option here, because the weights determine it")
    arrays = [array if isinstance(array, Tensor) else torch.as_tensor(array, device="cpu") for array in weights]
    if len(arrays) not in (2, 3, 4, 6):
        raise ValueError(
            "weights must be kernel, recurrent_kernel and perhaps bias, or twice these of a Bidirectional layer, "
            f"got {len(arrays)} arrays"
        )
    directions = 1 if len(arrays) < 4 else 2
    layers = [arrays[: len(arrays) // directions], arrays[len(arrays) // directions :]][:directions]
    input_size, hidden_size, gates = _sizes(layers[0])
    options = {"batch_first": True, "dtype": arrays[0].dtype, **options}
    if gates == 3:
        options["reset_after"] = reset_after = _reset_after(layers[0], reset_after)
    elif reset_after is not None:
        raise ValueError(f"reset_after is an option of GRUs, and these weights are those of {gates} gates")
    bias_shape = (2, gates * hidden_size) if reset_after else (gates * hidden_size,)
    for bias in (bias for _, _, *biases in layers for bias in biases):
        if bias.shape != bias_shape:
            raise ValueError(f"bias must be {bias_shape} with such a kernel, got {tuple(bias.shape)}")
    module = _MODULES[gates](
        input_size, hidden_size, bias=len(layers[0]) == 3, bidirectional=directions == 2, **options
    )
    for suffix, layer in zip(module._suffixes(0), layers):
        _load(module, suffix, layer)
    return module


def to_keras(module: RNN | LSTM | GRU) -> list[Any]:
    """Return the weights of a module of one layer in the form that the Keras layer's ``set_weights()`` takes.

    The arrays are NumPy's, shaped and ordered as ``from_keras`` takes them; bfloat16, which NumPy lacks, becomes
    float32. If Keras has one bias and the module two, the result is their sum.

    Raises:
        TypeError: Keras has no layer for the module.
        ValueError: the module has more than one layer, projections or learnt initial states.
    """
    if not isinstance(module, RNN | LSTM | GRU):
        raise TypeError(f"Keras has layers for RNN, LSTM and GRU, and this is a {type(module).__name__}")
    if module.num_layers != 1:
        raise ValueError(f"a Keras layer is one layer, and this module has {module.num_layers}")
    if module.proj_size:
        raise ValueError(f"Keras has no LSTM with projections, and this module has proj_size={module.proj_size}")
    if module.learn_initial_state:
        raise ValueError("Keras learns no initial states, and this module has parameters for them")
    arrays = [array for suffix in module._suffixes(0) for array in _unload(module, suffix)]
    return [(array.float() if array.dtype == torch.bfloat16 else array).numpy() for array in arrays]


def _sizes(layer: list[Tensor]) -> tuple[int, int, int]:
    """Return I, H and the number of gates of kernel and recurrent_kernel."""
    kernel, recurrent = layer[:2]
    if kernel.dim() == recurrent.dim() == 2:
        hidden_size, rows = recurrent.shape
        if hidden_size and rows % hidden_size == 0 and rows // hidden_size in _MODULES and kernel.shape[1] == rows:
            return kernel.shape[0], hidden_size, rows // hidden_size
    raise ValueError(
        "kernel must be (I, G*H) and recurrent_kernel (H, G*H) with G = 1, 3 or 4 for SimpleRNN, GRU or LSTM, got "
        f"{tuple(kernel.shape)} and {tuple(recurrent.shape)}"
    )


def _reset_after(layer: list[Tensor], given: bool | None) -> bool:
    """Tell the kind of a GRU layer by the rank of its bias, if it has one."""
    if len(layer) == 2 and given is None:
        raise ValueError("nothing in the weights of a GRU without bias tells reset_after: pass it")
    found = given if len(layer) == 2 else layer[2].dim() == 2
    if given is not None and given != found:
        raise ValueError(f"reset_after={given} was given, but a bias of shape {tuple(layer[2].shape)} means {found}")
    return bool(found)


@torch.no_grad()
def _load(module: Recurrent, suffix: str, layer: list[Tensor]) -> None:
    """Copy one Keras layer's arrays to the parameters of that suffix; raise ValueError if one does not fit."""
    kernel, recurrent, *bias = layer
    parts = {"weight_ih": _to_ours(module, kernel.T), "weight_hh": _to_ours(module, recurrent.T)}
    if bias:
        input_bias, recurrent_bias = bias[0] if bias[0].dim() == 2 else (bias[0], torch.zeros_like(bias[0]))
        parts |= {"bias_ih": _to_ours(module, input_bias), "bias_hh": _to_ours(module, recurrent_bias)}
    for name, value in parts.items():
        parameter = getattr(module, name + suffix, None)
        if parameter is None:  # the reset-before GRU has one bias
            continue
        if parameter.shape != value.shape:
            shapes = ", ".join(str(tuple(array.shape)) for array in layer)
            raise ValueError(f"arrays of shapes {shapes} do not fit together: {name} would be {tuple(value.shape)}")
        parameter.copy_(value)


def _unload(module: Recurrent, suffix: str) -> list[Tensor]:
    """Return the arrays of a Keras layer from the parameters of that suffix."""
    parameter = {name: getattr(module, name + suffix).detach().cpu() for name in module._weight_names()}
    arrays = [_to_keras(module, parameter[name]).T.contiguous() for name in ("weight_ih", "weight_hh")]
    if module.bias:
        biases = [_to_keras(module, parameter[name]) for name in ("bias_ih", "bias_hh") if name in parameter]
        arrays.append(torch.stack(biases) if module.cell == "gru_reset_after" else sum(biases[1:], biases[0]))
    return arrays


def _to_ours(module: Recurrent, rows: Tensor) -> Tensor:
    """Convert rows (G*H, ...) of all gates from Keras's order and sign of z to ours."""
    if module._spec.gates != 3:
        return rows
    z, r, n = rows.chunk(3)
    return torch.cat([r, -z if module._spec.reset_before else z, n])


def _to_keras(module: Recurrent, rows: Tensor) -> Tensor:
    """Convert rows (G*H, ...) of all gates from our order and sign of z to Keras's."""
    if module._spec.gates != 3:
        return rows
    r, z, n = rows.chunk(3)
    return torch.cat([-z if module._spec.reset_before else z, r, n])
