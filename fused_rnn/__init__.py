"""Recurrent networks whose whole sequence, forward and backward, runs in one fused kernel.

``RNN``, ``LSTM`` and ``GRU`` are drop-ins for torch.nn's; ``MultiplicativeLSTM`` and ``MultiplicativeGRU`` are
cells that torch.nn lacks; ``RNNCell`` and so on are single steps. ``Recurrent`` and ``RecurrentCell`` describe the call
and the options of all of them. ``replace`` exchanges torch.nn's modules inside a model and ``restore`` reverses that;
``from_keras`` and ``to_keras`` convert weights of Keras's layers. ``functional`` takes weights as arguments,
``reference`` is the plain PyTorch oracle, ``onnx`` exports to ONNX, ``cuda`` tells how a GPU divides a call, and
``backends()`` lists what can run on this machine.
"""

from . import cuda, functional, onnx, reference
from .cell_modules import GRUCell, LSTMCell, MultiplicativeGRUCell, MultiplicativeLSTMCell, RecurrentCell, RNNCell
from .choice import Choice, backends, choose_backend
from .keras import from_keras, to_keras
from .modules import GRU, LSTM, RNN, MultiplicativeGRU, MultiplicativeLSTM
from .recurrent import Recurrent
from .replacement import Replacement, replace, restore
from .version import __version__

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Choice",
    "GRUCell",
    "LSTMCell",
    "MultiplicativeGRU",
    "MultiplicativeGRUCell",
    "MultiplicativeLSTM",
    "MultiplicativeLSTMCell",
    "RNNCell",
    "Recurrent",
    "RecurrentCell",
    "Replacement",
    "__version__",
    "backends",
    "choose_backend",
    "cuda",
    "from_keras",
    "functional",
    "onnx",
    "reference",
    "replace",
    "restore",
    "to_keras",
]
