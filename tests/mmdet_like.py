"""What mmdet's Mask2Former (Swin-S) holds, by name and shape, and weights that both libraries' copies can be given."""

import zlib
from collections.abc import Iterator

import torch

DEPTHS, WIDTHS, HEADS = (2, 2, 18, 2), (96, 192, 384, 768), (3, 6, 12, 24)
PIXELS = torch.randn(1, 3, 128, 160, generator=torch.Generator().manual_seed(0))
LOGITS = [  # what mmdet 3.3.0 makes of `weights()` and `PIXELS`: tests/test_mmdet.py
    1.4494, -2.0197, -3.0495, 1.4284, -2.0224, -3.0469, 1.4012, -2.0372, -3.0539,
    0.5220, -9.1227, -4.9913, 0.3289, -9.2950, -5.1672, 0.3536, -9.2848, -5.1649,
]  # fmt: skip


def some_of(classes: torch.Tensor, masks: torch.Tensor) -> list[float]:
    """Of class logits [100, 81] and mask logits [100, 32, 40]: some classes and a row of the masks of three queries."""
    chosen = [7, 50, 93]
    return torch.cat([classes[chosen, :3].flatten(), masks[chosen, 16, ::16].flatten()]).tolist()


def layer(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def feed_forward(name: str, width: int, hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from layer(f"{name}.ffn.layers.0.0", hidden, width)
    yield from layer(f"{name}.ffn.layers.1", width, hidden)


def backbone() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from layer("backbone.patch_embed.projection", 96, 3, 4, 4)
    yield from layer("backbone.patch_embed.norm", 96)
    for i, (depth, width, heads) in enumerate(zip(DEPTHS, WIDTHS, HEADS, strict=True)):
        yield from layer(f"backbone.norm{i}", width)
        for j in range(depth):
            block = f"backbone.stages.{i}.blocks.{j}"
            yield from layer(f"{block}.norm1", width)
            yield from layer(f"{block}.norm2", width)
            yield f"{block}.attn.w_msa.relative_position_bias_table", (169, heads)
            yield from layer(f"{block}.attn.w_msa.qkv", 3 * width, width)
            yield from layer(f"{block}.attn.w_msa.proj", width, width)
            yield from feed_forward(block, width, 4 * width)
        if i < 3:
            yield from layer(f"backbone.stages.{i}.downsample.norm", 4 * width)
            yield f"backbone.stages.{i}.downsample.reduction.weight", (2 * width, 4 * width)


def pixel_decoder() -> Iterator[tuple[str, tuple[int, ...]]]:
    name = "panoptic_head.pixel_decoder"
    for i, width in enumerate(reversed(WIDTHS[1:])):
        yield from layer(f"{name}.input_convs.{i}.conv", 256, width, 1, 1)
        yield from layer(f"{name}.input_convs.{i}.gn", 256)
    for i in range(6):
        encoder = f"{name}.encoder.layers.{i}"
        yield from layer(f"{encoder}.self_attn.sampling_offsets", 192, 256)
        yield from layer(f"{encoder}.self_attn.attention_weights", 96, 256)
        yield from layer(f"{encoder}.self_attn.value_proj", 256, 256)
        yield from layer(f"{encoder}.self_attn.output_proj", 256, 256)
        yield from feed_forward(encoder, 256, 1024)
        for j in range(2):
            yield from layer(f"{encoder}.norms.{j}", 256)
    yield f"{name}.level_encoding.weight", (3, 256)
    for conv, shape in (("lateral_convs", (256, 96, 1, 1)), ("output_convs", (256, 256, 3, 3))):
        yield f"{name}.{conv}.0.conv.weight", shape
        yield from layer(f"{name}.{conv}.0.gn", 256)
    yield from layer(f"{name}.mask_feature", 256, 256, 1, 1)


def transformer_decoder() -> Iterator[tuple[str, tuple[int, ...]]]:
    name = "panoptic_head.transformer_decoder"
    for i in range(9):
        for attention in ("self_attn", "cross_attn"):
            yield f"{name}.layers.{i}.{attention}.attn.in_proj_weight", (768, 256)
            yield f"{name}.layers.{i}.{attention}.attn.in_proj_bias", (768,)
            yield from layer(f"{name}.layers.{i}.{attention}.attn.out_proj", 256, 256)
        yield from feed_forward(f"{name}.layers.{i}", 256, 2048)
        for j in range(3):
            yield from layer(f"{name}.layers.{i}.norms.{j}", 256)
    yield from layer(f"{name}.post_norm", 256)


def shapes() -> dict[str, tuple[int, ...]]:
    head = "panoptic_head"
    queries = {f"{head}.query_embed.weight": (100, 256), f"{head}.query_feat.weight": (100, 256)}
    masks = {key: shape for i in (0, 2, 4) for key, shape in layer(f"{head}.mask_embed.{i}", 256, 256)}
    return {
        **dict(backbone()), **dict(pixel_decoder()), **dict(transformer_decoder()), **queries,
        f"{head}.level_embed.weight": (3, 256), **dict(layer(f"{head}.cls_embed", 81, 256)), **masks,
    }  # fmt: skip


def weights() -> dict[str, torch.Tensor]:
    """Each drawn by its name, so that no two layers could stand for one another."""
    return {name: drawn(name, shape) for name, shape in shapes().items()}


def drawn(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if len(shape) == 1:
        return float(name.endswith("weight")) + 0.2 * noise  # of norms; biases
    fan_in = noise[0].numel()
    return noise if "embed.weight" in name and "cls" not in name else noise * fan_in**-0.5


def like_mmdet_2(name: str) -> str:
    """Its decoder's layers list their attentions in the order of use."""
    crossed = name.replace(".cross_attn.", ".attentions.0.") if "transformer_decoder" in name else name
    own = ".attentions.1." if "transformer_decoder" in name else ".attentions.0."
    renamed = crossed.replace(".self_attn.", own)
    return renamed if name.startswith("backbone") else renamed.replace(".ffn.", ".ffns.0.")
