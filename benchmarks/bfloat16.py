"""bfloat16 on a CPU that has no instructions for it: products a hundred times faster, the same memory.

Such a CPU multiplies bfloat16 matrices at under 1 GFLOP/s. Inside `products_in_float32` each product widens its inputs,
multiplies and rounds once at the end. What stays for the backward is bfloat16 as before; of the wide copies only those
of the product at work are there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

_aten = torch.ops.aten
ATTENTION = _aten._scaled_dot_product_flash_attention_for_cpu.default
PRODUCTS = {
    _aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default, _aten.convolution.default,
    _aten.convolution_backward.default, ATTENTION,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
}  # fmt: skip


class _Float32Products(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in PRODUCTS or not any(isinstance(a, torch.Tensor) and a.dtype == torch.bfloat16 for a in args):
            return func(*args, **kwargs)
        wide = _cast((args, kwargs), torch.bfloat16, torch.float32)  # an attention mask is named
        made = func(*wide[0], **wide[1])
        if func is ATTENTION:  # the logarithms of its rows' sums are float32 anyway
            return _cast(made[0], torch.float32, torch.bfloat16), *made[1:]
        return _cast(made, torch.float32, torch.bfloat16)


def _cast(tree: Any, old: torch.dtype, new: torch.dtype) -> Any:
    return tree_map_only(torch.Tensor, lambda tensor: tensor.to(new) if tensor.dtype == old else tensor, tree)


@contextmanager
def products_in_float32() -> Iterator[None]:
    """Inside, bfloat16 products are made in float32 where the CPU has no bfloat16; elsewhere nothing changes."""
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        yield
        return
    with _Float32Products():
        yield
