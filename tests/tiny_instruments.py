"""GenEval's large instruments of a few thousand random weights, saved as their real classes save them."""

from pathlib import Path

import torch


def mask2former(folder: Path) -> str:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    torch.manual_seed(0)
    backbone = SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=32, num_queries=6, num_labels=80,
    )  # fmt: skip
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    return str(folder)


def clip(folder: Path) -> str:
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = small | {"vocab_size": 600, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "eos_token_id": 2}
    config = CLIPConfig(text_config=text, vision_config=small | {"image_size": 224, "patch_size": 56}, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    letters = "abcdefghijklmnopqrstuvwxyz-"
    words = ["<|startoftext|>", "<|pad|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[]).save_pretrained(folder)
    return str(folder)
