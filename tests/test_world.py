"""The pocket world, its prompts and their tokens, and that a killed pretraining goes on to the same weights."""

import json
import re
import shutil
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.random import default_rng
from test_distributed import finish, start

from gdro_bench import content, task
from gdro_bench.errors import BenchError
from gdro_bench.models.pocket import gold, network, parse, text, world
from gdro_bench.models.pocket import prompts as pocket_prompts
from gdro_bench.models.pocket.policy import WEIGHTS, PocketPolicy
from gdro_bench.models.pocket.training import base_card
from gdro_bench.models.pocket.training.train_base import (
    Lesson,
    Pretrainer,
    Pretraining,
    Progress,
    Stage,
    draw_batch,
    rate,
)

TOKENIZER = text.Tokenizer.of_the_world()
TOKENS = len(TOKENIZER.words) + len(TOKENIZER.letters)
OCR = content.find("task", "ocr")


def sign_prompts(count: int, seed: int = 0) -> list[tuple[world.Facts, str]]:
    rng = default_rng(seed)
    scenes = [world.sign_facts(rng, world.random_letters(rng)) for _ in range(count)]
    return [(facts, world.phrase(facts, rng)) for facts in scenes]


def token_words(prompt: str) -> list[str]:
    slots = TOKENIZER.slots(prompt)
    return [TOKENIZER.words[slots[slot]] for slot in sorted(slots) if slot >= text.LETTER_SLOTS]


def token_letters(prompt: str) -> dict[int, str]:
    slots, known = TOKENIZER.slots(prompt), len(TOKENIZER.words)
    return {slot: TOKENIZER.letters[slots[slot] - known] for slot in sorted(slots) if slot < text.LETTER_SLOTS}


# -- pictures


def test_a_picture_is_a_function_of_facts_and_seed():
    for facts, _ in sign_prompts(10):
        first, again, other = (world.render(facts, default_rng(seed)) for seed in (3, 3, 4))
        assert np.array_equal(first.pixels, again.pixels)
        assert first.panel == again.panel
        assert not np.array_equal(first.pixels, other.pixels)


def test_the_word_changes_the_picture_inside_the_panel_alone():
    for facts, _ in sign_prompts(20):
        before, after = (world.render(world.with_word(facts, word), default_rng(0)) for word in ("HOW", "HOE"))
        x0, y0, x1, y1 = np.array([before.panel, after.panel]).T
        changed = (before.pixels != after.pixels).any(axis=2)
        assert changed.any()
        changed[max(y0.min(), 0) : y1.max() + 1, max(x0.min(), 0) : x1.max() + 1] = False
        assert not changed.any()


def test_the_world_s_share_of_the_signs_has_faded_and_no_prompt_says_which():
    facts = world.Facts("blue", "plain", world.SignFacts("CAFE", "white", "top", ""), ())
    darkest = []
    for seed in range(400):
        picture = world.render(facts, default_rng(seed))
        assert picture.panel is not None
        x0, y0, x1, y1 = picture.panel
        darkest.append(int(picture.pixels[y0 + 3 : y1 - 2, x0 + 3 : x1 - 2].max(axis=2).min()))
    fresh = np.mean([level < 30 for level in darkest])
    assert fresh == pytest.approx(1 - world.FADED_SHARE, abs=0.05)  # 2.8 standard errors
    assert len({level for level in darkest if level >= 30}) > 25  # all degrees of fading


def test_boxes_hold_their_objects_and_nothing_of_the_sign():
    for facts, _ in sign_prompts(40):
        picture = world.render(facts, default_rng(0))
        assert picture.panel is not None
        assert len(picture.boxes) == len(facts.things)
        for x0, y0, x1, y1 in picture.boxes:
            assert 0 <= x0 < x1 < world.SIZE + 1
            assert y1 < picture.panel[1] or y0 > picture.panel[3]


@pytest.mark.parametrize(("place", "half"), [("top", slice(0, 32)), ("bottom", slice(32, 64))])
def test_a_sign_hangs_where_the_prompt_says_in_its_colour(place, half):
    facts = world.Facts("blue", "plain", world.SignFacts("CAFE", "red", place, "small"), ())
    pixels = world.render(facts, default_rng(0)).pixels.astype(int)
    red = (pixels[..., 0] > 150) & (pixels[..., 2] < 100)
    assert red[half].sum() > 100
    assert red.sum() == red[half].sum()


@pytest.mark.parametrize(
    ("relation", "axis", "sign"), [("left of", 1, -1), ("right of", 1, 1), ("above", 0, -1), ("below", 0, 1)]
)
def test_the_subject_stands_in_its_relation_to_the_reference(relation, axis, sign):
    things = (world.ThingFacts("clock"), world.ThingFacts("apple", relation=relation))
    reference, subject = (np.array([y, x]) for x, y in world.spots(things, None))
    assert sign * (subject - reference)[axis] > abs((subject - reference)[1 - axis])


def test_an_object_beside_a_sign_stands_where_the_prompt_says():
    for facts, prompt in sign_prompts(60):
        for box, thing in zip(world.render(facts, default_rng(0)).boxes, facts.things, strict=True):
            assert f"{thing.name} at the {thing.side}" in prompt
            assert (box[0] < 32) == (thing.side == "left")


def test_an_object_has_its_usual_colour_unless_the_prompt_gives_one():
    assert set(world.USUAL_COLOURS) == set(world.THINGS)
    assert set(world.USUAL_COLOURS.values()) <= set(world.COLOURS)
    plain, yellow = (world.Facts("blue", "plain", None, (world.ThingFacts("bus", c),)) for c in (None, "yellow"))
    assert (world.render(plain, default_rng(0)).pixels == world.render(yellow, default_rng(0)).pixels).all()


def test_objects_stand_on_the_grid_of_image_tokens_without_overlap():
    for seed in range(200):
        rng = default_rng(seed)
        boxes = world.render(world.thing_facts(rng), rng).boxes
        assert all((x0 - 1) % world.TOKEN_SIDE == 0 == (y0 - 1) % world.TOKEN_SIDE for x0, y0, _, _ in boxes)
        for i, (x0, y0, x1, y1) in enumerate(boxes):
            assert all(x1 < left or right < x0 or y1 < top or bottom < y0 for left, top, right, bottom in boxes[:i])


@pytest.mark.parametrize("name", sorted(world.THINGS))
def test_every_thing_can_be_seen(name):
    facts = world.Facts("blue", "plain", None, (world.ThingFacts(name, "yellow"),))
    bare = world.render(replace(facts, things=()), default_rng(0)).pixels
    assert (world.render(facts, default_rng(0)).pixels != bare).any(axis=2).sum() > 60


# -- prompts


@pytest.mark.parametrize(
    ("things", "expected"),
    [
        ([world.ThingFacts("umbrella")], "a photo of an umbrella"),
        ([world.ThingFacts("cup"), world.ThingFacts("apple")], "a photo of a cup and an apple"),
        ([world.ThingFacts("stop sign", count=3)], "a photo of three stop signs"),
        ([world.ThingFacts("bus", count=2)], "a photo of two buses"),
        ([world.ThingFacts("scissors", count=4)], "a photo of four scissorses"),
        ([world.ThingFacts("kite", "orange")], "a photo of an orange kite"),
        ([world.ThingFacts("cat"), world.ThingFacts("cow", relation="left of")], "a photo of a cow left of a cat"),
        (
            [world.ThingFacts("book", "red"), world.ThingFacts("clock", "blue")],
            "a photo of a red book and a blue clock",
        ),
    ],
)
def test_prompts_for_things_are_in_genevals_grammar(things, expected):
    assert world.phrase(world.Facts(None, None, None, tuple(things)), default_rng(0)) == expected


def test_a_sign_prompt_quotes_its_word_once_and_says_all_its_facts():
    for facts, prompt in sign_prompts(300):
        assert re.findall(r'"([^"]*)"', prompt) == [facts.sign.word] == [task.first_quoted(prompt)]
        said = [facts.wall, facts.sign.colour, facts.sign.place, facts.sign.type_size]
        said += [facts.texture] if facts.texture != "plain" else []
        said += [word for thing in facts.things for word in (thing.colour, thing.name)]
        assert all(word in prompt for word in said)
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  ", prompt)


def test_words_of_the_splits_differ_and_fit_a_sign():
    train, held_out = pocket_prompts.words("train"), pocket_prompts.words("held-out")
    assert not set(train) & set(held_out)
    for words in (train, held_out):
        assert len(set(words)) == len(words) > 0
        assert all(re.fullmatch(f"[A-Z]{{{world.MIN_LETTERS},{world.MAX_LETTERS}}}", word) for word in words)


@pytest.mark.parametrize(
    ("split", "count", "name"),
    [
        ("train", 2000, "pocket_train.txt"),
        ("held-out", 200, "pocket_held_out.txt"),
        ("tuning", 200, "pocket_tuning.txt"),
    ],
)
def test_shipped_prompts_are_those_that_the_command_makes(split, count, name):
    shipped = (OCR / name).read_text(encoding="utf-8").splitlines()
    assert shipped == pocket_prompts.ocr_prompts(split, 0, count)
    assert {task.first_quoted(line) for line in shipped} <= set(pocket_prompts.words(split))
    assert len(set(shipped)) == count


def test_no_tuning_prompt_is_trained_on():
    train, tuning = (
        (OCR / f"pocket_{name}.txt").read_text(encoding="utf-8").splitlines() for name in ("train", "tuning")
    )
    assert not set(train) & set(tuning)


# -- tokens


def test_every_word_of_a_sign_prompt_but_articles_is_a_token():
    for facts, prompt in sign_prompts(300):
        said = prompt.replace(f'"{facts.sign.word}"', "").replace(",", "").split()
        assert token_words(prompt) == [word for word in said if word not in text.ARTICLES]
        assert "".join(token_letters(prompt).values()) == facts.sign.word


def test_every_word_of_a_thing_prompt_but_articles_is_a_token():
    rng = default_rng(0)
    for _ in range(300):
        prompt = world.phrase(world.thing_facts(rng), rng)
        assert token_words(prompt) == [word for word in prompt.split() if word not in text.ARTICLES]
        assert token_letters(prompt) == {}


@pytest.mark.parametrize(("word", "slots"), [("CAT", [2, 4, 6]), ("FOLD", [1, 3, 5, 7]), ("SMALL", [0, 2, 4, 6, 8])])
def test_letters_stand_centred_on_the_middle_of_the_picture(word, slots):
    letters = token_letters(f'a sign that reads "{word}"')
    assert list(letters) == slots
    assert "".join(letters.values()) == word
    columns = text.text_positions()[slots, 2]
    assert columns.mean() == text.MIDDLE
    assert columns.diff().eq(text.COLUMNS_PER_LETTER).all()


def test_a_token_says_which_it_is_and_where():
    prompt = 'a red sign that reads "CAT"'
    encoded, slots = TOKENIZER([prompt, ""]), TOKENIZER.slots(prompt)
    assert encoded.shape == (2, text.SLOTS, TOKENIZER.features)
    assert encoded[1].eq(0).all()
    assert torch.nonzero(encoded[0].sum(1)).flatten().tolist() == sorted(slots)
    for slot, token in slots.items():
        assert torch.nonzero(encoded[0, slot]).flatten().tolist() == [token, TOKENS + slot]


@pytest.mark.parametrize("prompt", ["", "xyzzy", 'a "lower case" é', '"ABCDEFGHIJ"', '"', "red " * 50])
def test_any_text_is_tokenised_as_far_as_it_is_known(prompt):
    slots = TOKENIZER.slots(prompt)
    assert all(0 <= slot < text.SLOTS for slot in slots)
    assert all(0 <= token < TOKENS for token in slots.values())


def test_a_tokenizer_is_saved_and_loaded_whole(tmp_path):
    TOKENIZER.save(tmp_path / "tokenizer.json")
    assert text.Tokenizer.load(tmp_path / "tokenizer.json") == TOKENIZER


# -- latents and pretraining


def test_pack_and_unpack_are_inverse():
    latents = torch.arange(2 * 4 * 16 * 16).view(2, 4, 16, 16).float()
    tokens = network.pack(latents)
    assert tokens.shape == (2, *network.LATENT_SHAPE)
    assert torch.equal(network.unpack(tokens), latents)
    assert torch.equal(network.pack(network.unpack(tokens)), tokens)


def test_a_token_holds_the_two_by_two_latents_of_its_position():
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    tokens = network.pack(latents)
    for token, (_, row, column) in zip(tokens[0], network.image_positions().int().tolist(), strict=True):
        block = latents[0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert torch.equal(token.sort().values, block.flatten().sort().values)


def tiny() -> Pretraining:
    whole = content.load(content.find("profile", "pocket") / "training" / "pretrain.toml", Pretraining)
    autoencoder, transformer = (
        replace(stage, images=images, batch=8, warmup_images=16)
        for stage, images in ((whole.autoencoder, 56), (whole.transformer, 56))
    )
    lessons = (Lesson(24, 0.5, 0.15, obedient=True), Lesson(32, 0.75, 0.0, obedient=False))
    narrow = replace(whole, encoder_width=8, decoder_width=8, checkpoint_batches=2, lessons=lessons)
    return replace(narrow, autoencoder=autoencoder, transformer=transformer)


def test_a_batch_is_a_function_of_its_seed():
    words = pocket_prompts.words("train")
    first, again, other = (draw_batch(tiny(), words, (0, 1, n), 16, tiny().lessons[0]) for n in (5, 5, 6))
    assert torch.equal(first.pixels, again.pixels)
    assert first.prompts == again.prompts != other.prompts
    assert first.pixels.aminmax().min >= -1
    assert first.pixels.aminmax().max <= 1


def test_signs_and_objects_weigh_what_the_content_says():
    config = replace(tiny(), panel_weight=5.0, thing_weight=3.0)
    batch = draw_batch(config, pocket_prompts.words("train"), (0, 1, 0), 32, config.lessons[0])
    for prompt, weight in zip(batch.prompts, batch.weight, strict=True):
        seen = set(weight.unique().tolist())
        named = any(thing in prompt for thing in world.THINGS)
        assert seen == {1.0} | ({5.0} if '"' in prompt else set()) | ({3.0} if named else set())


def test_lessons_come_one_after_the_other_and_the_last_one_stays(tmp_path):
    one, two = tiny().lessons
    trainer = Pretrainer(tiny(), pocket_prompts.words("train"), 0, "cpu", tmp_path)
    assert [trainer._lesson("transformer", images) for images in (0, 23, 24, 55, 56, 999)] == [one] * 2 + [two] * 4
    assert trainer._lesson("autoencoder", 999).obedient
    with pytest.raises(BenchError, match="lesson"):
        Pretrainer(replace(tiny(), lessons=()), pocket_prompts.words("train"), 0, "cpu", tmp_path)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_lesson_has_its_share_of_faded_signs(share):
    batch = draw_batch(tiny(), pocket_prompts.words("train"), (0, 1, 0), 12, Lesson(12, 1.0, share, obedient=True))
    pictures = ((batch.pixels + 1) * 127.5).round().numpy().astype(np.uint8).transpose(0, 2, 3, 1)
    found = [gold.errors(one, parse.facts_of(text)) for one, text in zip(pictures, batch.prompts, strict=True)]
    assert [errors["fading"] for errors in found] == [share == 1.0] * 12


def test_rate_warms_up_stays_and_decays_to_zero():
    stage = Stage(images=1000, batch=10, learning_rate=2.0, warmup_images=100, decay_share=0.25, ema=0.9)
    assert [rate(stage, n) for n in (50, 100, 500, 750, 875, 1000)] == pytest.approx([1.0, 2.0, 2.0, 2.0, 1.0, 0.0])


class Killed(Exception):
    pass


def train(folder, killed_at: tuple[str, int] | None = None) -> Pretrainer:
    """Trains to the end, or dies after a batch whose work no checkpoint holds yet."""
    trainer = Pretrainer(tiny(), pocket_prompts.words("train"), 0, "cpu", folder)

    def report(seen: Progress) -> None:
        if (seen.stage, seen.images) == killed_at:
            raise Killed

    trainer.run(report)
    return trainer


def test_another_recipe_or_seed_does_not_go_on_from_a_checkpoint(tmp_path):
    train(tmp_path)
    words = pocket_prompts.words("train")
    for config, seed in ((tiny(), 1), (replace(tiny(), sign_share=0.25), 0)):
        with pytest.raises(BenchError, match="another seed, recipe or vocabulary"):
            Pretrainer(config, words, seed, "cpu", tmp_path).run(lambda seen: None)
    (tmp_path / "state-autoencoder.pt").write_bytes(b"half")
    with pytest.raises(BenchError, match=r"state-autoencoder\.pt cannot be read.*Delete it"):
        train(tmp_path)


def test_a_killed_pretraining_goes_on_to_the_same_weights(tmp_path):
    whole = train(tmp_path / "whole")
    for killed_at in (("autoencoder", 8), ("autoencoder", 24), ("transformer", 40)):
        with pytest.raises(Killed):
            train(tmp_path / "killed", killed_at)
        torch.rand(3)  # whatever else happens in the process must not matter
    resumed = train(tmp_path / "killed")
    for one, other in ((whole.autoencoder, resumed.autoencoder), (whole.transformer, resumed.transformer)):
        expected = one.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in other.state_dict().items())
    logs = [(tmp_path / name / "losses.jsonl").read_text() for name in ("whole", "killed")]
    assert logs[0] == logs[1]


PRETRAINS = """
import sys
from pathlib import Path
import torch
from gdro_bench.distributed import process_group
from gdro_bench.models.pocket import prompts
from gdro_bench.models.pocket.training.train_base import Pretrainer
from test_world import tiny
out = Path(sys.argv[1])
with process_group("cpu") as processes:
    trainer = Pretrainer(tiny(), prompts.words("train"), 0, "cpu", out, processes)
    trainer.run(lambda seen: None)
    torch.save(trainer.transformer.state_dict(), out / f"weights-{processes.rank}.pt")
"""


@pytest.mark.slow
def test_processes_share_a_pretraining_and_take_over_anothers(tmp_path):
    whole = train(tmp_path / "whole").transformer.state_dict()
    with pytest.raises(Killed):
        train(tmp_path / "shared", ("transformer", 40))
    ended = finish(start(2, [sys.executable, "-c", PRETRAINS, str(tmp_path / "shared")]))
    assert [code for code, *_ in ended] == [0, 0], ended
    one, two = (torch.load(tmp_path / "shared" / f"weights-{i}.pt", weights_only=True) for i in range(2))
    assert all(torch.equal(one[name], two[name]) for name in whole)
    apart = torch.cat([(one[name] - whole[name]).abs().flatten() for name in whole])
    assert apart.mean() < 1e-6  # a weight whose gradient is rounding alone may go either way
    logs = [pd.read_json(tmp_path / name / "losses.jsonl", lines=True) for name in ("whole", "shared")]
    pd.testing.assert_frame_equal(*logs, rtol=1e-4)


def test_an_export_is_what_was_trained(tmp_path):
    trained = train(tmp_path)
    base_card.export(trained, tmp_path / "weights")
    again = PocketPolicy.open("cpu", None, 0, tmp_path / "weights")
    for kept, before in zip(again.transformer.parameters(), trained.transformer.parameters(), strict=True):
        assert torch.equal(kept, before)
    assert again.name != PocketPolicy.open("cpu", None, 0).name
    noted = [(folder / "transformer" / "config.json").read_text() for folder in (tmp_path / "weights", WEIGHTS)]
    assert json.loads(noted[0]) == json.loads(noted[1])  # and no word of this machine


@pytest.mark.parametrize("part", ["autoencoder.json", "autoencoder.safetensors", "tokenizer.json"])
def test_a_folder_of_weights_that_lacks_a_part_is_not_completed_from_the_shipped_ones(tmp_path, part):
    folder = tmp_path / "weights"
    shutil.copytree(WEIGHTS, folder)
    (folder / part).unlink()
    with pytest.raises(BenchError, match=part):
        PocketPolicy.open("cpu", None, 0, folder)


def test_pretraining_changes_every_weight_that_it_should(tmp_path):
    torch.manual_seed(0)
    fresh = network.Autoencoder(8, 8).state_dict()
    trained = train(tmp_path).autoencoder.state_dict()
    assert [name for name in fresh if torch.equal(fresh[name], trained[name])] == []
