"""The training attention against its definition."""

import pytest
import torch

from d2sd.drafters.network import KeyValues, attend
from d2sd.train.attention import attend_fast


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 6e-2)])
def test_output_and_gradients_equal_the_definition(dtype, tolerance):
    torch.manual_seed(0)
    s, kv, a, b, g, d, c = 2, 2, 3, 4, 2, 16, 7
    anchors = torch.randint(1, c, (s, a))
    mask = torch.zeros(s, 1, a, 1, 1, c + b, dtype=dtype)
    hidden = torch.arange(c) >= anchors[..., None]
    mask[..., :c].masked_fill_(hidden[:, None, :, None, None], torch.finfo(dtype).min)
    shapes = [(s, kv, a, b, g, d), (s, kv, c, d), (s, kv, c, d), (s, kv, a, b, d), (s, kv, a, b, d)]
    inputs = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    wish = torch.randn(shapes[0], dtype=dtype)

    def outcome(function):
        query, keys, values, own_k, own_v = inputs
        out = function(query, KeyValues(keys, values), KeyValues(own_k, own_v), mask)
        return [out, *torch.autograd.grad(out, inputs, wish)]

    for ours, wanted in zip(outcome(attend_fast), outcome(attend), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=tolerance, atol=tolerance)
