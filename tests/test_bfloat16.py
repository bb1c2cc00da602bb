"""bfloat16 products made in float32: as exact as one rounding, and as small as bfloat16's own."""

import torch

from benchmarks.bfloat16 import _Float32Products


def test_products_are_rounded_once_and_what_is_saved_stays_narrow() -> None:
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(64, 32), torch.randn(8, 64, requires_grad=True)
    exact, narrow = layer(x), torch.nn.Linear(64, 32)
    saved: list[torch.dtype] = []
    narrow.load_state_dict(layer.state_dict())
    narrow.to(torch.bfloat16)
    y = x.detach().to(torch.bfloat16).requires_grad_()
    with _Float32Products(), torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: (saved.append(tensor.dtype), tensor)[1], lambda tensor: tensor
    ):  # fmt: skip
        out = narrow(y)
        out.sum().backward()
    assert out.dtype == y.grad.dtype == torch.bfloat16
    assert set(saved) == {torch.bfloat16}
    assert torch.allclose(out.float(), exact, atol=2e-2)
    wide = torch.nn.functional.linear(y.float(), narrow.weight.float(), narrow.bias.float())
    assert torch.equal(out, wide.to(torch.bfloat16))


def test_attention_keeps_its_float32_sums() -> None:
    q = torch.randn(1, 2, 16, 8, dtype=torch.bfloat16, requires_grad=True)
    with _Float32Products():
        out = torch.nn.functional.scaled_dot_product_attention(q, q, q)
        out.sum().backward()
    wide = torch.nn.functional.scaled_dot_product_attention(*[q.detach().float()] * 3)
    assert torch.equal(out, wide.to(torch.bfloat16))
    assert q.grad.dtype == torch.bfloat16
