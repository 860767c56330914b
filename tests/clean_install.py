"""Check that the package trains in an environment in which it was installed from a wheel.

The script needs torch and the package alone, no pytest, and runs outside the source tree.
"""

import sys

import torch

import fused_rnn

assert fused_rnn.__file__.startswith(sys.prefix), f"{fused_rnn.__file__} does not belong to this environment"
for cell in (fused_rnn.RNN, fused_rnn.LSTM, fused_rnn.GRU, fused_rnn.MultiplicativeLSTM, fused_rnn.MultiplicativeGRU):
    ours = cell(11, 13, num_layers=2, bidirectional=True, backend="cpu")
    oracle = cell(11, 13, num_layers=2, bidirectional=True, backend="reference")
    theirs = getattr(torch.nn, cell.__name__, lambda *_, oracle=oracle, **__: oracle)(11, 13, 2, bidirectional=True)
    input = torch.randn(7, 3, 11)
    for module in (oracle, theirs):
        module.load_state_dict(ours.state_dict())
        module.zero_grad()
        ours.zero_grad()
        for each in (ours, module):
            each(input)[0].square().sum().backward()
        torch.testing.assert_close(ours(input)[0], module(input)[0])
        for our_parameter, parameter in zip(ours.parameters(), module.parameters()):
            torch.testing.assert_close(our_parameter.grad, parameter.grad, rtol=1e-4, atol=1e-5)
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(input)[0], ours(input)[0])
print(f"fused_rnn {fused_rnn.__version__} works with torch {torch.__version__} and Python {sys.version.split()[0]}")
