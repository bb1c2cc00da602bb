"""mmdet's Mask2Former (Swin-S, COCO instances) in transformers' class: the published evaluator's weights without mmcv.

The two libraries compute the same network under other names (tests/test_mmdet.py holds one to the other). Two matrices
differ in more than a name: transformers keeps query, key and value apart, and where Swin merges four neighbours mmdet
orders them channel by channel, transformers neighbour by neighbour and column by column. Checkpoints of mmdet 2, which
GenEval's code loads, and of mmdet 3 are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gdro_bench.errors import BenchError, first_line

ZOO = "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco, of mmdet's model zoo"
_LIKE_MMDET_3 = (
    (r"(pixel_decoder\.encoder\.layers\.\d+)\.attentions\.0\.", r"\1.self_attn."),
    (r"(transformer_decoder\.layers\.\d+)\.attentions\.0\.", r"\1.cross_attn."),
    (r"(transformer_decoder\.layers\.\d+)\.attentions\.1\.", r"\1.self_attn."),
    (r"\.ffns\.0\.", ".ffn."),
)
_BACKBONE = (
    (r"^backbone\.patch_embed\.projection", "backbone.embeddings.patch_embeddings.projection"),
    (r"^backbone\.patch_embed\.norm", "backbone.embeddings.norm"),
    *((rf"^backbone\.norm{i}", f"backbone.hidden_states_norms.stage{i + 1}") for i in range(4)),
    (r"^backbone\.stages", "backbone.encoder.layers"),
    (r"(blocks\.\d+)\.norm1", r"\1.layernorm_before"),
    (r"(blocks\.\d+)\.norm2", r"\1.layernorm_after"),
    (r"(blocks\.\d+)\.ffn\.layers\.0\.0", r"\1.intermediate.dense"),
    (r"(blocks\.\d+)\.ffn\.layers\.1", r"\1.output.dense"),
    (r"attn\.w_msa\.proj", "attention.output.dense"),
    (r"attn\.w_msa", "attention.self"),
    (r"^backbone", "model.pixel_level_module.encoder"),
)
_MASKS = "model.transformer_module.decoder.mask_predictor.mask_embedder"
_HEAD = (
    (r"\.ffn\.layers\.0\.0", ".fc1"),
    (r"\.ffn\.layers\.1", ".fc2"),
    (r"(pixel_decoder.*)\.norms\.0", r"\1.self_attn_layer_norm"),
    (r"(pixel_decoder.*)\.norms\.1", r"\1.final_layer_norm"),
    (r"(transformer_decoder.*)\.norms\.0", r"\1.cross_attn_layer_norm"),
    (r"(transformer_decoder.*)\.norms\.1", r"\1.self_attn_layer_norm"),
    (r"(transformer_decoder.*)\.norms\.2", r"\1.final_layer_norm"),
    (r"_attn\.attn\.", "_attn."),
    (r"input_convs\.(\d)\.conv", r"input_projections.\1.0"),
    (r"input_convs\.(\d)\.gn", r"input_projections.\1.1"),
    (r"lateral_convs\.0\.conv", "adapter_1.0"),
    (r"lateral_convs\.0\.gn", "adapter_1.1"),
    (r"output_convs\.0\.conv", "layer_1.0"),
    (r"output_convs\.0\.gn", "layer_1.1"),
    (r"level_encoding\.weight", "level_embed"),
    (r"mask_feature", "mask_projection"),
    (r"post_norm", "layernorm"),
    (r"^panoptic_head\.pixel_decoder", "model.pixel_level_module.decoder"),
    (r"^panoptic_head\.transformer_decoder", "model.transformer_module.decoder"),
    (r"^panoptic_head\.query_embed", "model.transformer_module.queries_embedder"),
    (r"^panoptic_head\.query_feat", "model.transformer_module.queries_features"),
    (r"^panoptic_head\.level_embed", "model.transformer_module.level_embed"),
    (r"^panoptic_head\.cls_embed", "class_predictor"),
    *((rf"^panoptic_head\.mask_embed\.{2 * i}", f"{_MASKS}.{i}.0") for i in range(3)),
)
_NO_WEIGHT = re.compile(r"relative_position_index|^panoptic_head\.loss")
# What transformers' class makes itself, by version, or has and no prediction needs.
NOT_GIVEN = re.compile(r"relative_position_index$|encoder\.(swin\.)?layernorm\.|^criterion\.")


def load(checkpoint: str) -> Any:
    """transformers' Mask2FormerForUniversalSegmentation with a checkpoint's weights.

    Raises:
        BenchError: the file cannot be read as tensors, or is of another network.
    """
    import transformers

    library: Any = transformers
    library.logging.set_verbosity_error()  # it would list the weights that no prediction needs
    swin = library.SwinConfig(
        embed_dim=96, depths=[2, 2, 18, 2], num_heads=[3, 6, 12, 24], window_size=7,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = library.Mask2FormerConfig(backbone_config=swin, num_labels=80)
    weights = converted(read(checkpoint))
    try:
        model, found = library.Mask2FormerForUniversalSegmentation.from_pretrained(
            None, config=config, state_dict=weights, output_loading_info=True
        )
        fits = all(map(NOT_GIVEN.search, found["missing_keys"])) and not found["unexpected_keys"]
    except RuntimeError:  # other shapes
        fits = False
    if not fits:
        raise BenchError(
            f"{checkpoint} does not hold mmdet's Mask2Former with Swin-S on COCO's instances.",
            f"Download it: {ZOO}.",
        )
    return model


def read(checkpoint: str) -> dict[str, Tensor]:
    """The weights of a checkpoint under mmdet 3's names. It is read as tensors alone: a pickle could run code.

    Raises:
        BenchError: it is not there, or cannot be read so.
    """
    if not Path(checkpoint).is_file():
        raise BenchError(f"mmdet's checkpoint {checkpoint!r} is not there.", f"Download it: {ZOO}.")
    try:
        loaded = torch.load(checkpoint, map_location="cpu", weights_only=True)
        weights: dict[str, Tensor] = loaded["state_dict"]
    except Exception as error:  # torch raises whatever the file makes it
        raise BenchError(
            f"{checkpoint} cannot be read as tensors: {first_line(error)}.",
            "Save its state_dict alone: torch.save({'state_dict': weights}, FILE), on a machine you trust it on.",
        ) from error
    return {_renamed(name, _LIKE_MMDET_3): value for name, value in weights.items()}


def converted(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """mmdet 3's weights under the names that transformers' own checkpoints have."""
    return {
        new: part
        for name, value in weights.items()
        if not _NO_WEIGHT.search(name)
        for new, part in _parts(_renamed(name, _BACKBONE if name.startswith("backbone.") else _HEAD), value)
    }


def _renamed(name: str, table: Iterable[tuple[str, str]]) -> str:
    for pattern, new in table:
        name = re.sub(pattern, new, name)
    return name


def _parts(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    if "self.qkv" in name:
        for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
            yield name.replace("qkv", part), third
    elif "self_attn.in_proj_" in name:
        for part, third in zip("qkv", value.chunk(3), strict=True):
            yield name.replace("in_proj_", f"{part}_proj."), third
    elif "downsample" in name:
        yield name, by_neighbour(value)
    else:
        yield name, value


def by_neighbour(value: Tensor) -> Tensor:
    """[..., 4 C], four neighbours of each channel row by row -> [..., 4 C], all channels of each, column by column."""
    by_place = value.view(*value.shape[:-1], -1, 2, 2).movedim((-1, -3), (-3, -1))
    return by_place.flatten(-3)
