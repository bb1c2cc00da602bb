"""The pocket judge: what it is taught, and what the shipped one says of damages of known severity on fresh scenes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.random import default_rng

from gdro_bench.errors import BenchError
from gdro_bench.models.pocket import judge, world
from gdro_bench.models.pocket.judge import AXES, WIDTHS, PocketJudge
from gdro_bench.models.pocket.network import Autoencoder
from gdro_bench.models.pocket.policy import PocketPolicy
from gdro_bench.models.pocket.training import judge_card, train_judge
from gdro_bench.models.pocket.training.train_judge import COHERENCE, STYLE, JudgeTraining
from gdro_bench.task import Prompt

SIGN = world.Facts(
    "blue", "striped", world.SignFacts("TREE", "white", "top", ""), (world.ThingFacts("cat", "red", side="left"),)
)
DAMAGES = COHERENCE | STYLE


# -- what is taught


def test_a_field_is_told_for_every_fact_that_is_said():
    assert sum(field != judge.NOTHING for field in judge.fields(SIGN)) == 7
    assert sum(field != judge.NOTHING for field in judge.fields(world.Facts(None, None, None, SIGN.things))) == 3
    assert len(judge.fields(SIGN)) == len(WIDTHS)


def test_objects_are_named_by_where_they_stand():
    cat, dog = world.ThingFacts("cat"), world.ThingFacts("cow")
    right_of = world.Facts(None, None, None, (cat, replace(dog, relation="right of")))
    left_of = world.Facts(None, None, None, (dog, replace(cat, relation="left of")))
    beside = world.Facts(None, None, None, (cat, dog))
    assert judge.fields(right_of) == judge.fields(left_of) == judge.fields(beside)
    assert judge.fields(right_of) != judge.fields(replace(right_of, things=(cat, replace(dog, relation="below"))))


@pytest.mark.parametrize("seed", range(20))
def test_wrong_facts_are_other_ones(seed):
    rng = default_rng(seed)
    asked = world.sign_facts(rng, "TREE") if seed % 2 else world.thing_facts(rng)
    names = [str(name) for name in rng.permutation(train_judge.said(asked))]
    for count in range(len(names) + 1):
        shown = train_judge.with_wrong(asked, names[:count], rng)
        assert (shown != asked) == (count > 0)
        assert (judge.fields(shown) != judge.fields(asked)) == (count > 0)


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damage_grows_with_its_severity(kind):
    picture = world.render(SIGN, default_rng(3)).pixels
    apart = [
        np.abs(DAMAGES[kind](picture, s, default_rng(0)).astype(float) - picture).mean() for s in (0.1, 0.4, 0.7, 1.0)
    ]
    assert apart == sorted(apart)
    assert apart[-1] > 1.5 * apart[0] > 0


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    return PocketPolicy.open("cpu", None, 0).autoencoder


CONFIG = JudgeTraining(8, 64, 16, 1e-3, 0.5, 0.5, 0.6, 0.6)


def test_a_batch_is_a_function_of_its_seed(autoencoder):
    first, again = (train_judge.draw(CONFIG, ["TREE"], autoencoder, default_rng(5)) for _ in range(2))
    assert all((a.pixels == b.pixels).all() and a.severities == b.severities for a, b in zip(first, again, strict=True))
    assert len({str(one.severities) for one in first}) > 4


def test_a_right_verdict_loses_less_than_a_wrong_one(autoencoder):
    batch = train_judge.draw(CONFIG, ["TREE"], autoencoder, default_rng(5))
    shown = torch.tensor([judge.fields(one.shown) for one in batch])
    right = [9.0 * torch.nn.functional.one_hot(shown[:, i].clamp(0), w).float() for i, w in enumerate(judge.WIDTHS)]
    severe = torch.tensor([[one.severities.get(kind, 0.0) for kind in judge.KINDS] for one in batch])
    least = train_judge.loss(judge.Verdict(tuple(right), severe), batch)
    assert train_judge.loss(judge.Verdict(tuple(-logits for logits in right), severe), batch) > least + 1
    for wrong in (1 - severe, (severe + 0.1).clamp(max=1), torch.zeros_like(severe) + severe.mean()):
        assert train_judge.loss(judge.Verdict(tuple(right), wrong), batch) > least


def test_an_axis_falls_by_what_its_damages_add_up_to():
    severe = torch.zeros(3, len(judge.KINDS))
    severe[1, [judge.KINDS.index("blur"), judge.KINDS.index("stripes")]] = 0.25
    severe[2, [judge.KINDS.index("blocks"), judge.KINDS.index("overexposure")]] = 0.8
    severe[2, judge.KINDS.index("repetition")] = 0.8
    assert judge.Verdict((), severe).quality.flatten().tolist() == pytest.approx([5, 5, 3, 5, 1, 1.8])


def test_training_is_a_function_of_its_seed(autoencoder):
    first, again = (
        train_judge.train(CONFIG, ["TREE"], autoencoder, 0, lambda images, loss: None).state_dict() for _ in range(2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)


# -- the shipped judge


@pytest.fixture(scope="module")
def shipped() -> PocketJudge:
    return PocketJudge.open()


@pytest.mark.slow
@pytest.mark.parametrize("kind", DAMAGES)
def test_its_axis_falls_with_every_damage(shipped, autoencoder, kind):
    axis = "coherence" if kind in COHERENCE else "style"
    found = judge_card.by_damage(shipped, autoencoder, kind, seed=77)
    means = [float(answers[axis].mean()) for answers in found]
    assert means == sorted(means, reverse=True)
    assert means[0] > 4.5
    assert means[-1] < means[0] - 2


def test_alignment_falls_with_every_wrong_fact(shipped, autoencoder):
    found = judge_card.by_wrong_facts(shipped, autoencoder, seed=77)
    means = [float(answers["alignment"].mean()) for answers in found]
    assert means == sorted(means, reverse=True)
    assert means[0] > 4.5
    assert means[-1] < 2.5


@pytest.mark.parametrize("name", [name for name in judge_card.ERRORS if name != "letter"])
def test_an_error_of_the_base_costs_alignment_and_nothing_else(shipped, autoencoder, name):
    right, wrong = judge_card.by_error(shipped, autoencoder, name, seed=77)
    lost = {axis: float((right[axis] - wrong[axis]).mean()) for axis in right}
    assert lost.pop("alignment") > 0.7
    assert all(abs(other) < 0.3 for other in lost.values())


def test_a_letter_that_is_wrong_costs_nothing(shipped, autoencoder):
    right, wrong = judge_card.by_error(shipped, autoencoder, "letter", seed=77)
    assert all(abs(float((right[axis] - wrong[axis]).mean())) < 0.1 for axis in right)


def test_it_does_not_read(shipped):
    pictures = np.stack([world.render(world.with_word(SIGN, word), default_rng(4)).pixels for word in ("TREE", "HTRE")])
    prompt = Prompt(world.phrase(SIGN, default_rng(0)), "TREE")
    right, misspelt = shipped(pictures, [prompt, prompt])
    assert misspelt.parts == pytest.approx(right.parts, abs=0.3)


def test_a_prompt_of_another_grammar_is_unscored_and_a_known_one_is_not(shipped):
    picture = world.render(replace(SIGN, things=()), default_rng(4)).pixels
    prompts = [Prompt("a nice day", ""), Prompt(world.phrase(SIGN, default_rng(0)), "TREE")]
    strange, known = shipped(np.stack([picture, picture]), prompts)
    assert not strange.scored
    assert np.isnan([strange.parts[axis] for axis in AXES]).all()
    assert all(1 <= known.parts[axis] <= 5 for axis in AXES)


def test_its_name_says_which_weights_they_are(shipped):
    assert shipped.name != PocketJudge(judge.Network(8)).name
    assert "1-5" in shipped.name


def test_missing_weights_are_named(tmp_path: Path):
    with pytest.raises(BenchError, match=r"cannot be loaded.*pretrain pocket-judge"):
        PocketJudge.open(tmp_path)


def test_a_saved_judge_says_the_same_when_loaded(tmp_path: Path):
    network = judge.Network(8)
    judge.save(network, 8, tmp_path)
    picture = world.render(SIGN, default_rng(4)).pixels[None]
    prompt = [Prompt(world.phrase(SIGN, default_rng(0)), "TREE")]
    assert PocketJudge.open(tmp_path)(picture, prompt)[0].parts == PocketJudge(network)(picture, prompt)[0].parts


def test_the_card_tells_every_kind_of_damage():
    text = (judge.WEIGHTS / "CARD.md").read_text(encoding="utf-8")
    assert all(f"| {kind} |" in text for kind in ("wrong facts", *DAMAGES))
