"""The interface of torch.nn.RNNBase beside ``forward`` that programs use: names, lists of weights, sizes and checks.

None of it is stored: it is computed from the parameters and options on every access.
"""

import weakref
from typing import ClassVar

from torch import Tensor, nn

from . import autocast, ops
from .cell_based import CellBased

_MODES = {"gru_reset_after": "GRU", "gru": "GRU_RESET_BEFORE"}  # cells that torch.nn names otherwise


class LikeRNNBase(CellBased):
    """A module of layers and directions, with the attributes of torch.nn.RNNBase."""

    num_layers: int
    batch_first: bool
    bidirectional: bool
    proj_size: int
    __constants__: ClassVar[list[str]] = [
        *("mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional"),
        "proj_size",
    ]
    __jit_unused_properties__: ClassVar[list[str]] = ["all_weights"]

    @property
    def mode(self) -> str:
        """The cell as torch.nn names it; cells that torch.nn lacks have names that it does not use."""
        return _MODES.get(self.cell, self.cell.upper())

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def _runs(self) -> int:
        """The number of states: layers × directions."""
        return self.num_layers * self._directions

    @property
    def _output_size(self) -> int:
        return self.proj_size or self.hidden_size

    def _state_sizes(self) -> dict[str, int]:
        sizes = {"h_0": self._output_size, "c_0": self.hidden_size}
        return sizes if self._spec.has_cell_state else {"h_0": sizes["h_0"]}

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}", f"_l{layer}_reverse"][: self._directions]

    def _weight_names(self) -> list[str]:
        return super()._weight_names() + (["weight_hr"] if self.proj_size else [])

    # Weights ------------------------------------------------------------------------------------------------

    @property
    def _all_weights(self) -> list[list[str]]:
        """The names of the parameters, one list per layer and direction."""
        suffixes = [suffix for layer in range(self.num_layers) for suffix in self._suffixes(layer)]
        return [[name + suffix for name in self._weight_names()] for suffix in suffixes]

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters, one list per layer and direction."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    @property
    def _flat_weights_names(self) -> list[str]:
        return [name for names in self._all_weights for name in names]

    @property
    def _flat_weights(self) -> list[Tensor | None]:
        return _FlatWeights(self)

    @_flat_weights.setter
    def _flat_weights(self, weights: list[Tensor | None]) -> None:
        now = self._flat_weights
        for index, weight in enumerate(weights):
            now[index] = weight

    @property
    def _flat_weight_refs(self) -> list[weakref.ref | None]:
        return [None if weight is None else weakref.ref(weight) for weight in self._flat_weights]

    def _weights_have_changed(self) -> bool:
        return False  # there is no copy that could be out of date; each call reads the weights

    def flatten_parameters(self) -> None:
        """Do nothing: torch.nn needs this for cuDNN, and its callers may go on calling it."""

    _init_flat_weights = _update_flat_weights = flatten_parameters

    # Sizes and checks ---------------------------------------------------------------------------------------

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        """Raise RuntimeError for a wrong rank or number of features, ValueError for a wrong dtype.

        Args:
            input: (T, B, I) or with ``batch_first`` (B, T, I), or packed (rows, I).
            batch_sizes: of a PackedSequence; None for padded input.
        """
        rank = 3 if batch_sizes is None else 2
        if input.dim() != rank:
            packed = "" if batch_sizes is None else ": a PackedSequence of (T, I) tensors"
            raise RuntimeError(f"input must have {rank} dimensions, got {input.dim()}{packed}")
        if input.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.shape[-1]}"
            )
        dtype = self.weight_hh_l0.dtype
        if input.dtype != dtype and not autocast.is_on(input.device.type):
            raise ValueError(
                f"RNN input dtype ({input.dtype}) does not match weight dtype ({dtype}). "
                f"Convert input: input.to({dtype}), or convert model: model.to({input.dtype})"
            )

    def get_expected_hidden_size(self, input: Tensor, batch_sizes: Tensor | None) -> tuple[int, int, int]:
        """Return the shape of h_0 for an input as in ``check_input``: (layers * directions, B, H), P if projected."""
        return self._runs, self._batch(input, batch_sizes), self._output_size

    def get_expected_cell_size(self, input: Tensor, batch_sizes: Tensor | None) -> tuple[int, int, int]:
        """Return the shape of c_0, in modules that have it: (layers * directions, B, H)."""
        return self._runs, self._batch(input, batch_sizes), self.hidden_size

    def check_hidden_size(
        self, hx: Tensor, expected_hidden_size: tuple[int, ...], msg: str = "Expected hidden size {}, got {}"
    ) -> None:
        """Raise RuntimeError, with both shapes in ``msg``, if a state does not have the expected one."""
        if tuple(hx.shape) != expected_hidden_size:
            raise RuntimeError(msg.format(expected_hidden_size, list(hx.shape)))

    def check_forward_args(self, input: Tensor, hidden: ops.State, batch_sizes: Tensor | None) -> None:
        """Raise the error that a call with batched input and these initial states would raise for their shapes."""
        self.check_input(input, batch_sizes)
        self._check_states(self._state_parts(hidden), self._batch(input, batch_sizes), batched=True)

    def permute_hidden(self, hx: ops.State, permutation: Tensor | None) -> ops.State:
        """Reorder the sequences of states, in dimension 1, by ``permutation``; None leaves them as they are."""
        if permutation is None:
            return hx
        return self._state_of(tuple(part.index_select(1, permutation) for part in self._state_parts(hx)))

    def _batch(self, input: Tensor, batch_sizes: Tensor | None) -> int:
        return input.shape[0 if self.batch_first else 1] if batch_sizes is None else int(batch_sizes[0])

    def _check_states(self, parts: tuple[Tensor, ...], batch: int, batched: bool) -> None:
        """Check the shapes of states; those of unbatched input have no dimension of sequences."""
        kind = "batched (3-D)" if batched else "unbatched (2-D)"
        for (name, size), part in zip(self._state_sizes().items(), parts):
            shape = (self._runs, batch, size) if batched else (self._runs, size)
            self.check_hidden_size(part, shape, f"{name}: Expected hidden size {{}} for {kind} input, got {{}}")


class _FlatWeights(list):
    """The weights of all layers and directions, as torch.nn lists them; setting an item sets the attribute."""

    def __init__(self, module: LikeRNNBase) -> None:
        super().__init__(getattr(module, name, None) for name in module._flat_weights_names)
        self._module = module

    def __setitem__(self, index, weight) -> None:
        if weight is self[index]:
            return
        name = self._module._flat_weights_names[index]
        if name in self._module._parameters and not isinstance(weight, nn.Parameter):
            raise TypeError(
                f"{name} is a parameter, in whose place _flat_weights cannot put a {type(weight).__name__}: "
                "use torch.func.functional_call, or delete the parameter first"
            )
        setattr(self._module, name, weight)
        super().__setitem__(index, weight)
