"""Observers of operators that must see a call as operators which are differentiated in the usual way.

The quick path and the second stream leave all calls to the full path if there is such an observer.
"""

import torch
from torch.autograd import forward_ad

# Names of their own, because a plain call asks for all of these, and to find them takes as long as to ask.
_is_compiling = torch.compiler.is_compiling
_transforms = torch._C._are_functorch_transforms_active
_trace = torch._C._get_tracing_state
_modes = torch._C._len_torch_dispatch_stack
_hooks = torch._C._autograd._top_saved_tensors_default_hooks


def look_on() -> bool:
    """Whether a compiler, a trace, a transform of ``torch.func``, a derivative in forward mode or a mode that watches
    operators is there, or hooks of saved tensors, such as those of ``torch.utils.checkpoint``."""
    return (
        _is_compiling()  # which comes first, because it cannot trace the rest
        or _transforms()
        or forward_ad._current_level >= 0
        or _trace() is not None
        or _modes() > 0
        or _hooks(True) is not None
    )
