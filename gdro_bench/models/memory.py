"""What a run at full scale holds on each device at its peak, counted from shapes before anything is loaded.

Counted without memory (torch's meta device): weights, adapters, and what a forward with gradient saves for its
backward, with attention as the fused kernels of a GPU do it (its square matrix is never kept).
A run goes through three phases, encoding texts, sampling and training; its peak is the largest of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from gdro_bench.errors import BenchError
from gdro_bench.methods import CostModel
from gdro_bench.models.pretrained import PretrainedPolicy, blocks
from gdro_bench.models.shapes import autoencoder_config, open_shapes, transformer_config
from gdro_bench.profile import PretrainedConfig, Profile, Sampler
from gdro_bench.task import Prompt

ADAPTER_COPIES = 5  # value, gradient, AdamW's two moments and the moving average
FLOAT = 4  # bytes
ENCODERS = {"flux": 4.76e9 + 0.123e9, "sd3": 4.76e9 + 0.123e9 + 0.695e9}  # parameters of T5-XXL, CLIP-L and CLIP-G
WORKSPACE = 2  # times a block's saved tensors: made anew in the backward, and their gradients
DECODER = 6  # outputs of its largest layer that the autoencoder holds at a time


@dataclass(frozen=True, slots=True)
class Counted:
    """Bytes of a model: `weights` of the transformer, its largest `block`, the `autoencoder`, the text `encoders`, the
    adapters' values; saved for the backward of one image, `unchecked` and `checkpointed`, and by its largest block;
    `float32` is the part of `unchecked` that is float32 where the model is not. `decoding` is for one image."""

    weights: float
    block: float
    autoencoder: float
    encoders: float
    adapters: float
    unchecked: float
    checkpointed: float
    block_saved: float
    float32: float
    decoding: float
    forward_flop: float


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes a device holds at the peak of each phase."""

    encoding: float
    sampling: float
    training: float

    @property
    def peak(self) -> float:
        return max(self.encoding, self.sampling, self.training)


def count(
    profile: Profile, transformer: Mapping[str, Any] | None = None, autoencoder: Mapping[str, Any] | None = None
) -> Counted:
    """Of the profile's model, or of other shapes of its family.

    Raises:
        BenchError: the profile's model is not a pretrained one, or its shapes are not known.
    """
    config = profile.pretrained
    if config is None:
        raise BenchError("Memory is foretold for pretrained models.", "Choose flux1-dev or sd35-medium.", 2)
    dtype = getattr(torch, config.dtype)
    unchecked = replace(profile, pretrained=replace(config, gradient_checkpointing=False, compiled=False))
    shapes = dict(transformer or transformer_config(config)), dict(autoencoder or autoencoder_config(config))
    policy = open_shapes(unchecked, shapes[0], "meta", dtype, shapes[1])
    saved, wide, by_block = _saved(policy)
    inputs = _block_inputs(policy)
    frozen = [p for p in policy.transformer.parameters() if not p.requires_grad]
    each = [sum(_bytes(p) for p in block.parameters() if not p.requires_grad) for block in blocks(policy.transformer)]
    return Counted(
        weights=sum(map(_bytes, [*frozen, *policy.transformer.buffers()])),  # SD3's table of positions is a buffer
        block=max(each),
        autoencoder=sum(map(_bytes, [*policy.vae.parameters(), *policy.vae.buffers()])),
        encoders=_encoders(profile.model, config, dtype),
        adapters=sum(map(_bytes, policy.parameters())),
        unchecked=saved,
        checkpointed=inputs + saved - sum(by_block),
        block_saved=max(by_block),
        float32=wide,
        decoding=DECODER * _largest_output(policy),
        forward_flop=_flop(policy),
    )


def foretell(profile: Profile, counted: Counted, images: int, processes: int = 1, copies: int = 0) -> Memory:
    """Of one of `processes`, when `images` go through the model together in training (twice as many under guidance) and
    the method keeps so many older `copies` of the adapters."""
    config = profile.pretrained
    assert config is not None
    weights = counted.weights / (2 if config.float8 else 1)
    if config.sharded and processes > 1:
        weights = weights / processes + 2 * counted.block  # one at work, one on its way
    held = weights + counted.autoencoder + (1 + copies) * counted.adapters
    saved = counted.checkpointed if config.gradient_checkpointing else counted.unchecked
    working = WORKSPACE * counted.block_saved if config.gradient_checkpointing else counted.block_saved
    matrices = counted.block if config.gradient_checkpointing else counted.weights  # float8 ones, in the model's dtype
    widened = matrices if config.float8 else 0.0
    return Memory(
        encoding=held + counted.encoders,
        sampling=held + max(counted.decoding, profile.sampler.batch * counted.block_saved),
        training=held + widened + (ADAPTER_COPIES - 1) * counted.adapters + images * (saved + working),
    )


def of_methods(
    costs: Mapping[str, CostModel], profile: Profile, counted: Counted, processes: int = 1
) -> dict[str, tuple[int, Memory]]:
    """For each method, of whose costs we are told, how many images go together, and the memory."""
    together = {method: images_together(cost, profile.sampler) for method, cost in costs.items()}
    return {
        method: (together[method], foretell(profile, counted, together[method], processes, cost.copies))
        for method, cost in costs.items()
    }


def images_together(costs: CostModel, sampler: Sampler) -> int:
    """That go through a model with gradient before a backward: methods with rollouts guide them, too."""
    guided = costs.rollouts and costs.guided
    return costs.batch * (sampler.passes if guided else 1)


def _encoders(model: str, config: PretrainedConfig, dtype: torch.dtype) -> float:
    """Bytes of the text encoders: of the pipeline's folder, or of the published models."""
    files = list(Path(config.source).glob("text_encoder*/*.safetensors"))
    return float(sum(file.stat().st_size for file in files)) or ENCODERS[model] * dtype.itemsize


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _forward(policy: PretrainedPolicy) -> Tensor:
    x = torch.empty(1, *policy.latent_shape, device="meta")
    return policy.velocity(x, torch.ones(1, device="meta"), policy.encode([Prompt("", "")]))


def _saved(policy: PretrainedPolicy) -> tuple[float, float, list[float]]:
    """Bytes that one image's forward saves for its backward, without parameters and each storage once: in all, in
    float32 where the model is not, and by block."""
    own = {p.untyped_storage()._cdata for p in policy.transformer.parameters()}
    kept: dict[int, Any] = {}  # storages stay here, so that no address is used twice
    total, wide = 0.0, 0.0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total, wide
        storage = tensor.untyped_storage()
        if storage._cdata not in own and storage._cdata not in kept:
            kept[storage._cdata] = storage
            total += storage.nbytes()
            wide += storage.nbytes() if tensor.dtype == torch.float32 != policy.dtype else 0
        return tensor

    by_block = [0.0 for _ in blocks(policy.transformer)]

    def enter(i: int) -> Callable[..., None]:
        return lambda *_: by_block.__setitem__(i, by_block[i] - total)

    def leave(i: int) -> Callable[..., None]:
        return lambda *_: by_block.__setitem__(i, by_block[i] + total)

    hooks = [(block, enter(i), leave(i)) for i, block in enumerate(blocks(policy.transformer))]
    with _hooked(hooks), _FusedAttention(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _forward(policy)
    return total, wide, by_block


class _Attention(torch.autograd.Function):
    """Saves what fused attention saves: its inputs, its output and the logarithm of each row's sum."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, rows = torch.empty_like(q), q.new_empty(q.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, rows)
        return out


class _FusedAttention(TorchFunctionMode):
    """Inside, attention counts as fused: on the meta device torch would take it apart."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            return _Attention.apply(named["query"], named["key"], named["value"])  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


@contextmanager
def _hooked(hooks: list[tuple[Module, Callable[..., None], Callable[..., None]]]) -> Iterator[None]:
    handles = [
        handle
        for module, before, after in hooks
        for handle in (module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _block_inputs(policy: PretrainedPolicy) -> float:
    """Bytes of what all blocks are given, each tensor once: what checkpointing keeps of them."""
    kept: dict[int, Any] = {}

    def note(module: Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        for one in (*arguments, *named.values()):
            if isinstance(one, Tensor):
                kept[one.untyped_storage()._cdata] = one.untyped_storage()

    with _hooked([(block, note, lambda *_: None) for block in blocks(policy.transformer)]):
        _forward(policy)
    return float(sum(storage.nbytes() for storage in kept.values()))


def _largest_output(policy: PretrainedPolicy) -> float:
    """Bytes of the largest output of a layer of the autoencoder's decoder, for one image."""
    largest = 0.0

    def note(module: Module, arguments: Any, output: Any) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, _bytes(output))

    side, channels = policy.latent_side, policy.vae.config.latent_channels
    layers: list[Module] = list(policy.vae.decoder.modules())
    with _hooked([(layer, lambda *_: None, note) for layer in layers]), torch.no_grad():
        policy.vae.decoder(torch.empty(1, channels, side, side, device="meta", dtype=policy.dtype))
    return largest


def _flop(policy: PretrainedPolicy) -> float:
    """Operations of one forward of one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _forward(policy)
    return float(counter.get_total_flops())
