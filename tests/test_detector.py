"""The pocket detector's geometry, the shipped weights on fresh scenes, and the GenEval reward made of them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.random import default_rng
from PIL import Image

from gdro_bench.cli import main
from gdro_bench.errors import BenchError
from gdro_bench.models.pocket import detector as pocket
from gdro_bench.models.pocket import network, world
from gdro_bench.models.pocket.detector import PocketDetector
from gdro_bench.models.pocket.training import detector_card, train_detector
from gdro_bench.rewards import geneval, geneval_prompts, geneval_rules
from gdro_bench.rewards.geneval_rules import Detection
from gdro_bench.task import Prompt

TASK = Path(__file__).parents[1] / "tasks" / "geneval"


def heads_that_say(targets: train_detector.Targets) -> pocket.Heads:
    """Perfect heads for these targets."""
    classes = torch.logit(targets.classes.clamp(1e-4, 1 - 1e-4))
    colours, sides = torch.zeros(len(classes), len(pocket.COLOURS), 16, 16), torch.zeros(len(classes), 4, 16, 16)
    b, row, column = targets.at.unbind(1)
    colours[b, targets.colours, row, column] = 9.0
    sides[b, :, row, column] = targets.sides
    return pocket.Heads(classes, colours, sides)


def test_what_is_encoded_is_decoded():
    rng = default_rng(0)
    batch = [train_detector.labelled(world.thing_facts(rng), rng) for _ in range(60)]
    decoded = pocket.decode(heads_that_say(train_detector.targets(batch)))
    for one, found in zip(batch, decoded, strict=True):
        expected = sorted((pocket.CLASSES[k], pocket.COLOURS[c], box) for k, c, box in one.things)
        seen = sorted((name, d.colour, d.box) for name, ds in found.items() for d in ds)
        assert [e[:2] for e in expected] == [s[:2] for s in seen]
        for (_, _, box), (_, _, drawn) in zip(expected, seen, strict=True):
            assert drawn == pytest.approx(box)


def test_boxes_move_with_the_picture():
    facts = world.Facts("blue", "plain", None, (world.ThingFacts("bus", "yellow"),))
    one = train_detector.labelled(facts, default_rng(3))
    _, _, (x0, y0, x1, y1) = one.things[0]
    yellow = (one.pixels[..., 0] > 180) & (one.pixels[..., 2] < 120)
    rows, columns = np.nonzero(yellow)
    assert x0 <= columns.min() <= columns.max() <= x1
    assert y0 <= rows.min() <= rows.max() <= y1
    assert columns.max() - columns.min() > 20


def test_right_heads_lose_less_than_wrong_ones():
    rng = default_rng(1)
    batch = [train_detector.labelled(world.thing_facts(rng), rng) for _ in range(8)]
    wanted = train_detector.targets(batch)
    right = heads_that_say(wanted)
    wrong = pocket.Heads(right.classes.flip(1), right.colours.flip(1), right.sides + 4)
    assert train_detector.loss(right, wanted) < 0.1 < 1 < train_detector.loss(wrong, wanted)


def test_a_scene_without_objects_can_be_learnt_from():
    rng = default_rng(2)
    batch = [train_detector.labelled(world.Facts("red", "plain", None, ()), rng)]
    made = train_detector.loss(pocket.Detector(16)(torch.zeros(1, 3, 64, 64)), train_detector.targets(batch))
    assert torch.isfinite(made)


def test_training_lowers_the_loss_and_is_a_function_of_the_seed():
    config = train_detector.DetectorTraining(16, 32 * 12, 12, 3e-3, 0.8, 0.5, 0.3)
    torch.manual_seed(0)
    autoencoder = network.Autoencoder(8, 8).eval()
    runs: list[list[float]] = [[], []]
    for losses in runs:
        train_detector.train(config, ["CAT"], autoencoder, 5, lambda _, loss, kept=losses: kept.append(loss))
    assert runs[0] == runs[1]
    assert np.mean(runs[0][-5:]) < 0.9 * np.mean(runs[0][:5])


# -- the shipped weights


@pytest.fixture(scope="module")
def shipped() -> PocketDetector:
    return PocketDetector.open()


@pytest.mark.slow
@pytest.mark.parametrize("tag", geneval_prompts.TAGS)
def test_the_shipped_detector_knows_right_scenes_from_others(shipped, tag):
    right, other = detector_card.accuracy(shipped, None, default_rng(77))[tag]
    assert right.mean > 0.9
    assert other.mean < 0.1


def test_swapped_channels_do_not_go_unnoticed(shipped):
    rng = default_rng(4)
    scenes = [geneval_prompts.Scene("colors", (geneval_prompts.Clause(n, 1, "red"),), "") for n in pocket.CLASSES]
    images = np.stack([world.render(detector_card.facts_of(scene), rng).pixels for scene in scenes])

    def right(shown: np.ndarray) -> float:
        kept = [geneval_rules.kept(seen.objects, "colors") for seen in shipped(np.ascontiguousarray(shown))]
        return float(
            np.mean(
                [geneval_rules.verdict(s, k, geneval_rules.detected_colours) for s, k in zip(scenes, kept, strict=True)]
            )
        )

    assert right(images) > 0.8
    assert right(images[..., ::-1]) < 0.2  # red becomes blue


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(BenchError, match="pretrain pocket-detector"):
        PocketDetector.open(tmp_path)


# -- the reward


class Seen:
    """A detector that saw what it is told."""

    name = "told detector"
    classes = ("cat", "dog")

    def __init__(self, *found: dict[str, list[Detection]]) -> None:
        self.found = [geneval_rules.Detections(objects, geneval_rules.detected_colours) for objects in found]

    def __call__(self, images):
        return self.found


def prompt(scene: geneval_prompts.Scene) -> Prompt:
    return Prompt(scene.prompt, json.dumps(scene.published()))


CAT = Detection((0, 0, 10, 10), 0.8, "red")
ONE_CAT = geneval_prompts.single_object("cat")


def test_the_reward_has_the_score_and_the_verdicts_by_tag():
    reward = geneval.GenEvalReward(Seen({"cat": [CAT, CAT]}), "mended score", geneval_rules.mended_score)
    score = reward(np.zeros((1, 64, 64, 3), np.uint8), [prompt(ONE_CAT)])[0]
    assert (score.value, score.parts["correct"], score.parts["strict"]) == (0.0, 1.0, 0.0)
    assert score.parts["correct single_object"] == 1.0
    assert np.isnan(score.parts["correct counting"])
    assert score.note == "2 red cat"
    assert reward.name == "GenEval mended score (told detector)"


def test_a_class_that_the_detector_does_not_know_is_named():
    reward = geneval.GenEvalReward(Seen({}), "mended score", geneval_rules.mended_score)
    with pytest.raises(BenchError, match="There is no class of the told detector called 'cow'"):
        reward(np.zeros((1, 64, 64, 3), np.uint8), [prompt(geneval_prompts.single_object("cow"))])
    kept_out = replace(ONE_CAT, exclude=(geneval_prompts.Clause("cow", 2),))
    with pytest.raises(BenchError, match="called 'cow'"):
        reward(np.zeros((1, 64, 64, 3), np.uint8), [prompt(kept_out)])


def test_no_held_out_prompt_is_trained_on():
    train, held_out = (
        {json.loads(line)["prompt"] for line in (TASK / f"pocket_{name}.jsonl").read_text().splitlines()}
        for name in ("train", "held_out")
    )
    assert not train & held_out


# -- eval on GenEval's layout


def folder(path: Path, scenes: list[geneval_prompts.Scene], shown: list[geneval_prompts.Scene]) -> Path:
    for i, (asked, drawn) in enumerate(zip(scenes, shown, strict=True)):
        samples = path / f"{i:05d}" / "samples"
        samples.mkdir(parents=True)
        (path / f"{i:05d}" / "metadata.jsonl").write_text(json.dumps(asked.published()))
        pixels = world.render(detector_card.facts_of(drawn), default_rng(i)).pixels
        Image.fromarray(pixels).save(samples / "0000.png")
    return path


def evaluate(*arguments: object):
    return CliRunner().invoke(main, ["eval", "geneval", *map(str, arguments)])


def test_eval_reads_geneval_s_layout_and_scores_it(tmp_path):
    scenes = geneval_prompts.suite(default_rng(9), pocket.CLASSES, 2)
    result = evaluate("--images", folder(tmp_path / "in", scenes, scenes), "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert found["pictures"] == len(scenes)
    assert found["parts"]["correct"]["mean"] > 0.85
    assert set(found["parts"]) == {"correct", "strict", *(f"correct {tag}" for tag in geneval_prompts.TAGS)}


def remove_sample(path: Path) -> None:
    (path / "00000" / "samples" / "0000.png").unlink()


def corrupt_picture(path: Path) -> None:
    (path / "00000" / "samples" / "0000.png").write_bytes(b"\x89PNG oops")


def unknown_class(path: Path) -> None:
    (path / "00000" / "metadata.jsonl").write_text(json.dumps(geneval_prompts.single_object("catt").published()))


def no_metadata(path: Path) -> None:
    (path / "00000" / "metadata.jsonl").write_text('{"prompt": "a photo of a cat"}')


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (remove_sample, "has no samples/*.png"),
        (corrupt_picture, "0000.png cannot be read"),
        (unknown_class, "Did you mean 'cat'?"),
        (no_metadata, "is no metadata of GenEval"),
    ],
)
def test_a_spoilt_folder_is_named_in_a_sentence(tmp_path, spoil, said):
    path = folder(tmp_path, [geneval_prompts.single_object("cat")], [geneval_prompts.single_object("cat")])
    spoil(path)
    result = evaluate("--images", path)
    assert result.exit_code in (1, 2)
    assert said in result.output
    assert "Traceback" not in result.output
