"""Rewards that watch: their values, how they travel with a score, and which may watch what."""

from pathlib import Path

import numpy as np
import pytest

from gdro_bench.budget import Ledger, MeteredScorer
from gdro_bench.engine.plan import make_plan
from gdro_bench.errors import BenchError
from gdro_bench.models.pocket import world
from gdro_bench.models.pocket.detector import PocketDetector
from gdro_bench.models.pocket.parse import facts_of
from gdro_bench.rewards.auxiliary import Compressibility, Objects, WithAuxiliaries, named, values_of
from gdro_bench.score import Images, Score
from gdro_bench.task import Prompt

CAT = Prompt('a green wall with a red sign saying "COW" at the bottom and an orange cat at the left', "COW")
PLAIN = Prompt('a yellow sign that reads "LAMP" at the bottom of an orange wall', "LAMP")


def picture(prompt: Prompt, seed: int = 0) -> Images:
    facts = facts_of(prompt.text)
    assert facts is not None
    return world.render(facts, np.random.default_rng(seed)).pixels


def test_noise_compresses_worse_than_a_wall():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    wall = np.full((64, 64, 3), 90, dtype=np.uint8)
    values = [score.value for score in Compressibility()(np.stack((noise, wall)), [CAT, CAT])]
    assert 0 < values[0] < 0.2 < 0.8 < values[1] < 1


def test_names_are_found_outside_quotes_in_both_numbers():
    classes = ("cat", "cow", "cup", "sports ball")
    assert named(CAT.text, classes) == ("cat",)
    assert named("a photo of two cups and a sports ball", classes) == ("cup", "sports ball")
    assert named("a photo of a catalogue", classes) == ()
    assert named("A Cat on a mat", classes) == ("cat",)
    assert named('a cup that says "cow', classes) == ("cup",)  # as a target's quotes


def test_the_asked_object_is_looked_for():
    reward = Objects(PocketDetector.open())
    images = np.stack([picture(CAT), picture(PLAIN)])
    asked_cat, asked_nothing = reward(images, [CAT, CAT]), reward(images, [PLAIN, PLAIN])
    assert asked_cat[0].value > 0.8 > 0.2 > asked_cat[1].value
    assert asked_nothing[0].value < 0.2 < 0.5 < asked_nothing[1].value  # a plain sign is no object at 0.37


class Half:
    name = "half"

    def __call__(self, images: Images, prompts: list[Prompt]) -> list[Score]:
        return [Score(0.5, {"own": 1.0}, "seen") for _ in images]


def test_auxiliary_values_travel_as_parts_and_are_charged():
    ledger = Ledger(0)
    scorer = WithAuxiliaries(Half(), {"small": MeteredScorer(Compressibility(), ledger)})
    scores = scorer(np.zeros((3, 64, 64, 3), dtype=np.uint8), [CAT] * 3)
    assert scorer.name == "half"
    assert ledger.collection.reward_calls == 3
    assert [score.value for score in scores] == [0.5] * 3
    assert scores[0].parts["own"] == 1.0
    assert scores[0].note == "seen"
    assert values_of(scores, ["small"]).shape == (1, 3)
    assert values_of(scores, []).shape == (0, 3)


# -- from the command line


def plan(tmp_path: Path, *settings: str, method: str = "flow-grpo", task: str = "ocr") -> object:
    return make_plan(task, method, "pocket", 0, tmp_path, settings)


GATED = (
    'method.auxiliary.rewards=["compressibility","objects"]',
    "method.regulariser.gate.sign=paper",
    "method.regulariser.gate.ranks=epoch",
    "method.regulariser.gate.share=0.1",
    "method.regulariser.gate.adaptive=true",
)


def test_optional_tables_can_be_set_one_number_at_a_time(tmp_path):
    made = plan(tmp_path, *GATED, "method.kl_weight=0.04")
    assert made.auxiliaries == ("compressibility", "objects")
    assert made.config.regulariser.gate.share == 0.1
    assert made.settings["method"]["regulariser"] == {
        "gate": {"sign": "paper", "ranks": "epoch", "share": 0.1, "adaptive": True}
    }
    assert made.folder != plan(tmp_path).folder
    assert "regulariser" not in plan(tmp_path).settings["method"]


def test_a_whole_number_for_an_optional_fraction_is_one_spelling(tmp_path):
    one, other = (plan(tmp_path, f"method.regulariser.velocity_kl={n}", method="gdro") for n in ("1", "1.0"))
    assert one.folder == other.folder
    assert one.digests == other.digests


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (GATED[1:2], "lacks the setting 'ranks'"),
        (["method.regulariser.gates.sign=paper"], "'gates'"),
        (["method.regulariser.gate.sing=paper"], "'sing'"),
        (["method.regulariser.gate.share=0.5"], "lacks|at most 0.2"),
        ([*GATED, "method.regulariser.gate.share=0.5"], "at most 0.2"),
        ([*GATED, "method.regulariser.gate.sign=wrong"], "'wrong'"),
        (["method.regulariser.velocity_kl=0.1"], "'velocity_kl'"),  # GDRO's
        (['method.auxiliary.rewards=["pocket-facts"]'], "judges this run"),
        (['method.auxiliary.rewards=["pocket"]'], "judges this run"),
        (['method.auxiliary.rewards=["compresibility"]'], "compressibility"),
        (['method.auxiliary.rewards=["ocr"]'], "the task's own"),
        (['method.auxiliary.rewards=["objects","objects"]'], "there twice"),
        (['method.auxiliary.rewards=["geneval"]'], "does not understand the prompts"),
    ],
)
def test_bad_tables_are_told_in_a_sentence(tmp_path, settings, sentence):
    with pytest.raises(BenchError, match=sentence):
        plan(tmp_path, *settings)


def test_methods_without_the_tables_do_not_take_them(tmp_path):
    with pytest.raises(BenchError, match="auxiliary"):
        plan(tmp_path, *GATED[:1], method="rft")


def test_rewards_of_the_same_prompts_may_watch_each_other(tmp_path):
    watched = ('method.auxiliary.rewards=["ocr"]', "method.regulariser.aggregation.rule=min")
    assert plan(tmp_path, *watched, task="text-size").auxiliaries == ("ocr",)
