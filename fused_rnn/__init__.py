"""Recurrent networks whose whole sequence, forward and backward, runs in one fused kernel.

``RNN``, ``LSTM`` and ``GRU`` are drop-ins for torch.nn's; ``MultiplicativeLSTM`` and ``MultiplicativeGRU`` are
cells that torch.nn lacks; ``RNNCell`` and so on are single steps. What all of them take and return stands in
``Recurrent`` and ``RecurrentCell``. ``replace`` exchanges torch.nn's modules inside a model, ``restore`` is the way
back, ``from_keras`` takes the weights of one of Keras's. ``functional`` has the same with weights as arguments,
``reference`` the plain PyTorch oracle, ``onnx`` the export to ONNX, ``backends()`` what can run on this machine.
"""

from . import functional, onnx, reference
from .cell_modules import GRUCell, LSTMCell, MultiplicativeGRUCell, MultiplicativeLSTMCell, RecurrentCell, RNNCell
from .choice import backends, choose_backend
from .keras import from_keras, to_keras
from .modules import GRU, LSTM, RNN, MultiplicativeGRU, MultiplicativeLSTM
from .recurrent import Recurrent
from .replacement import Replacement, replace, restore
from .version import __version__

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
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
    "from_keras",
    "functional",
    "onnx",
    "reference",
    "replace",
    "restore",
    "to_keras",
]
