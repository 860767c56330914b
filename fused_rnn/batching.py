"""Rules of ``torch.func.vmap`` for the operators: calls with an additional dimension in some of their tensors.

If each sequence has the same results whatever stands beside it, the new dimension is folded into that of the sequences,
and one call computes everything. All sequences of a call share the weights: if weights have the new dimension, or each
of its members has weight gradients of its own, the members run one after the other.

Rules look arguments up by their names in the operators' schemas. They compute with operators of torch and with the
operator itself, so that outer transforms, autograd and compilers take part.
"""

import functools

import torch
from torch import Tensor

from .cells import WEIGHTS
from .operands import SHAPES, Operands


def register(operator: torch._ops.OpOverload) -> None:
    """Register the vmap rule of an operator."""
    torch.library.register_vmap(operator, functools.partial(_batched, operator))


def spread_for_clipping(operands: Operands) -> Operands:
    """Give input and states each new dimension of any operand, as the reference needs it to clip gradients.

    Gradients of a product that the members share would otherwise be summed over the members before they are clipped.
    """
    if torch.compiler.is_compiling():
        raise NotImplementedError(
            "the reference cannot be compiled with gradient_clip inside a transform of torch.func, where torch.compile "
            "drops the clipping: use a fused backend, or leave the transform uncompiled"
        )
    nothing = sum(t.new_zeros((), dtype=operands.input.dtype) for t in operands.tensors if t is not None)
    spread = {name: getattr(operands, name) for name in ("input", "h_0", "c_0")}
    return operands._replace(**{name: None if t is None else t + nothing for name, t in spread.items()})


def check_shared(name: str, tensor: Tensor, instead: str) -> None:
    """Raise RuntimeError if members of a vmap have values of their own in a tensor that one call cannot vary."""
    if torch._C._functorch.is_batchedtensor(tensor):
        raise RuntimeError(f"within torch.func.vmap the members share the {name}: for their own give {instead}")


def _batched(operator: torch._ops.OpOverload, info, in_dims: tuple[int | None, ...], *arguments) -> tuple:
    """Apply the rule, as ``torch.library.register_vmap`` calls it: return the results and their new dimensions."""
    names = [argument.name for argument in operator._schema.arguments]
    values, dims = dict(zip(names, arguments)), dict(zip(names, in_dims))
    apart = values.get("weight_gradients") or any(dims[name] is not None for name in WEIGHTS)
    results, out_dims = (_one_by_one if apart else _folded)(operator, info.batch_size, values, dims)
    return tuple(results), tuple(out_dims)


def _one_by_one(operator, size: int, values: dict, dims: dict) -> tuple[list[Tensor], list[int | None]]:
    calls = [
        operator(*(value if dims[name] is None else value.select(dims[name], index) for name, value in values.items()))
        for index in range(size)
    ]
    results = [parts[0] if _is_placeholder(parts[0]) else torch.stack(parts) for parts in zip(*calls)]
    return results, [None if _is_placeholder(result) else 0 for result in results]


def _folded(operator, size: int, values: dict, dims: dict) -> tuple[list[Tensor], list[int | None]]:
    def fold(name: str, value):
        dim = _dim_of_sequences(name)
        if dim is None or value is None or _is_placeholder(value):
            return value
        if dims[name] is None:
            value = value.unsqueeze(dim).expand(*value.shape[:dim], size, *value.shape[dim:])
        else:
            value = value.movedim(dims[name], dim)
        return value.flatten(dim, dim + 1)

    folded = operator(*(fold(name, value) for name, value in values.items()))
    results, out_dims = [], []
    for returned, result in zip(operator._schema.returns, folded):
        dim = None if _is_placeholder(result) else _dim_of_sequences(returned.name)
        results.append(result if dim is None else result.unflatten(dim, (size, -1)))
        out_dims.append(dim)
    return results, out_dims


def _dim_of_sequences(name: str) -> int | None:
    """Return the dimension of sequences, None without one; a gradient, named d_..., has it where its tensor does."""
    dim = SHAPES.get(name.removeprefix("d_"), "").find("B")
    return None if dim < 0 else dim


def _is_placeholder(result: Tensor) -> bool:
    """Whether a result stands for one that the cell lacks or that was not requested."""
    return result.shape == (0,)
