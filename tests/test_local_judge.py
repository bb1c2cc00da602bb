"""UnifiedReward on this machine: a tiny vision-language model of the real classes, saved to disk and loaded again."""

from pathlib import Path

import numpy as np
import pytest
import torch
from judge_server import RIGHT
from tokenizers import Tokenizer, models, pre_tokenizers

from gdro_bench.errors import BenchError
from gdro_bench.judges import unified_reward
from gdro_bench.judges.unified_reward import Local, UnifiedReward
from gdro_bench.profile import JudgeConfig
from gdro_bench.task import Prompt

PICTURE = np.random.default_rng(0).integers(0, 256, (1, 24, 24, 3), dtype=np.uint8)
PROMPT = [Prompt('a sign "TREE"', "TREE")]
TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %} answer"
)


def save_model(folder: Path, always_first: bool) -> Path:
    """A LLaVA of a few thousand weights. Its first word is a right answer; with `always_first` it says nothing else."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    words = [RIGHT, "<unk>", "<image>", "<pad>", "answer", "Caption"]
    words += [f"word{i}" for i in range(58)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")
    fast.add_special_tokens({"additional_special_tokens": ["<image>"]})
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = LlavaProcessor(
        images, fast, patch_size=16, vision_feature_select_strategy="default", chat_template=TEMPLATE,
        image_token="<image>", num_additional_image_tokens=1,
    )  # fmt: skip
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )
    text = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=None, eos_token_id=None, pad_token_id=3, max_position_embeddings=1024,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=2, vision_feature_layer=-1)
    )
    if always_first:
        torch.nn.init.zeros_(model.get_output_embeddings().weight)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unified_reward, "ANSWER_TOKENS", 3)


def test_a_right_answer_is_a_rating(tmp_path: Path) -> None:
    judge = UnifiedReward(Local(str(save_model(tmp_path / "UnifiedReward-tiny", True)), "cpu"))
    assert judge.name == "UnifiedReward-tiny (1-5)"
    score = judge(PICTURE, PROMPT)[0]
    assert score.parts == {"alignment": 4.5, "coherence": 3.0, "style": 2.694700002670288}


def test_another_answer_is_no_rating(tmp_path: Path) -> None:
    score = UnifiedReward(Local(str(save_model(tmp_path / "m", False)), "cpu"))(PICTURE, PROMPT)[0]
    assert not score.scored
    assert "no three ratings" in score.note


def test_the_picture_is_looked_at(tmp_path: Path) -> None:
    local = Local(str(save_model(tmp_path / "m", False)), "cpu")
    seen = []
    original = local.model.generate

    def watching(**asked: torch.Tensor) -> torch.Tensor:
        seen.append(asked)
        return original(**asked)

    local.model.generate = watching
    local(PICTURE[0], PROMPT[0])
    local(PICTURE[0] // 2, PROMPT[0])
    assert (seen[0]["input_ids"] == 2).sum() == 4  # a picture of 2x2 patches
    assert torch.equal(seen[0]["input_ids"], seen[1]["input_ids"])
    assert not torch.equal(seen[0]["pixel_values"], seen[1]["pixel_values"])


def test_a_missing_model_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"cannot be loaded from.*Give the folder"):
        unified_reward.open_local(JudgeConfig("unified-reward-local", "none", "none", "", str(tmp_path / "none")))
