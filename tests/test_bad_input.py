"""Bad input of every kind ends in a sentence and a remedy: no traceback, and nothing accepted in silence."""

import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file, save_file
from test_run import arguments

from gdro_bench import content
from gdro_bench.cli import main
from gdro_bench.models.pocket.policy import WEIGHTS

SHORT_PROFILE = (
    *("--device", "cpu", "--budget", "300", "--set", "profile.budget.marks=[0.6,1.0]"),
    *("--set", "profile.sampler.steps=3", "--set", "profile.held_out_prompts=4", "--set", "profile.kept_images=4"),
    *("--set", "profile.health.prompts=2"),
    *("--set", "profile.drift.prompts=1", "--set", "profile.drift.images=2", "--set", "profile.reader.workers=0"),
)
SHORT = (
    *SHORT_PROFILE,
    *("--set", "method.pool.prompts=4", "--set", "method.pool.images=4", "--set", "method.pool.shard_prompts=2"),
    *("--set", "method.k=4", "--set", "method.groups=2", "--set", "method.drop_flat=false"),
)
RUN = "ocr/pocket"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(result: Result) -> str:
    """A sentence and a remedy, or click's usage error, which it returns; never an exception."""
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code in (1, 2), result.output
    lines = [line for line in result.output.splitlines() if line.strip()]
    first = next(i for i, line in enumerate(lines) if line.startswith("Error: "))
    assert lines[first].rstrip().endswith((".", "?", "'", ")")), lines
    assert "Traceback" not in result.output
    return result.output


# ---------------------------------------------------------------------------------------------------------------
# Words on the command line

SETTINGS = {
    "profile": [
        *("sampler.steps=0", "sampler.steps=-1", "sampler.steps=1.5", "sampler.batch=0", "sampler.shift=nan"),
        *("held_out_prompts=0", "held_out_prompts=-1", "kept_images=0", "kept_images=-3", "max_unscored=-1"),
        *("max_unscored=2", "lora.rank=0", "lora.rank=true", "lora.targets=3", "budget.marks=[]", "budget.marks=[0.5]"),
        *("budget.marks=[0.5,0.4,1.0]", "budget.kind=euros", "model=nowhere", "prompts=nowhere"),
        *("reader.engine=nowhere", "drift.prompts=-1", "health.prompts=-1"),
        *("health.prompts=some", "health.judge=nowhere", "health.kl_limit=0", "health.kl_limit=nan", "keep_adapters=3"),
        *("reader.workers=-1", "sampler=3"),
        *("sampler.stepz=3", "samplr.steps=3"),
    ],
    "method": [
        *("k=1", "k=99", "k=two", "groups=0", "pool.prompts=0", "pool.images=0", "pool.shard_prompts=0", "beta=nan"),
        *("tau=-1", "gamma=inf", "reduction=median", "ties=none", "draw=all", "draws=0", "drop_flat=maybe"),
        *("optimiser.learning_rate=-1", "optimiser.learning_rate=x", "optimiser.clip=0", "optimiser.ema_ceiling=2"),
        *("optimiser.warmup_steps=-1", "pool.prompts=100000", "t_distribution=beta"),
        *("online.rounds=0", "online.rounds=3", "online.rounds=4", "online.sampler=me", "online.lag=2", "online=3"),
        *("online.window=-1", "online.held_back=4", "online.updates=0", "online.reference=none", "online.prompts=old"),
        *("adaptive_beta.rule=magic", "adaptive_beta.bound=0.5", "adaptive_beta.keep=0", "adaptive_beta.epsilon=1"),
        *("adaptive_beta.kl_target=0", "adaptive_beta.every=0", "adaptive_beta.ratio=0"),
        *("regulariser.velocity_kl=0", "regulariser.velocity_kl=-1", "regulariser=3", "regulariser.gate.sign=paper"),
        *("regulariser.target=0.1", "regulariser.diversity=pixels", "regulariser.reference.epochs=3"),
        *("regulariser.aggregation.rule=min", "auxiliary.rewards=3", 'auxiliary.rewards=["objects"]', "auxiliary=3"),
    ],
}


ROLLOUT_SETTINGS = [
    *("k=1", "prompts=0", "std=all", "std_epsilon=0", "std_epsilon=-1e-8", "std_epsilon=nan", "std_unbiased=maybe"),
    *("drop_zero=2", "shuffle=sometimes", "noisy_last=3", "timesteps=last", "timestep_fraction=1.1", "noising.level=0"),
    *("regulariser.velocity_kl=1", "regulariser.diversity=dino", "regulariser.reference.epochs=3"),
    *("regulariser.aggregation.rule=max", 'auxiliary.rewards=["pocket-facts"]', "regulariser.gates.share=0.1"),
]


@pytest.mark.parametrize("method", ["flow-grpo", "dance-grpo"])
@pytest.mark.parametrize("setting", ROLLOUT_SETTINGS)
def test_a_setting_of_a_rollout_method_that_cannot_be(method: str, setting: str, tmp_path: Path) -> None:
    refused(call("run", "ocr", "--out", tmp_path, "--method", method, *SHORT_PROFILE, "--set", f"method.{setting}"))


EPOCH = ("prompts=2", "k=4", "first=0", "last=2", "draws=1")
FORWARD = [
    *("mode=sometimes", "online.k=1", "online.k=0", "online.prompts=0", "online.prompts=100000", "online.draws=9"),
    *("online.first=3", "online.last=3", "online.last=-1", "online.rollout_steps=-1", "online.rollout_steps=2"),
    *("online.guidance=-1", "online.guidance=nan", "online.updates_per_epoch=0", "online.updates_per_epoch=3"),
    *("online.share_t=pair", "online.move_copies=never", "online.share_noise=maybe", "advantage_clip=0", "std=none"),
    *("teacher_guidance=0", "kl_weight=-1", "old.ceiling=2", "old.start=-1", "old.delay=-1", "old.slope=inf"),
    *("beta=0", "k=4", "groups=2", "offline.groups=0", "optimiser.epsilon=0"),
]


@pytest.mark.parametrize("setting", FORWARD)
def test_a_setting_of_a_forward_process_method_that_cannot_be(setting: str, tmp_path: Path) -> None:
    changed = [part for one in EPOCH for part in ("--set", f"method.online.{one}")]
    refused(
        call("run", "ocr", "--method", "nft", "--out", tmp_path, *SHORT_PROFILE, *changed, "--set", f"method.{setting}")
    )


@pytest.mark.parametrize("setting", [f"{group}.{s}" for group, some in SETTINGS.items() for s in some])
def test_a_setting_that_cannot_be(setting: str, tmp_path: Path) -> None:
    refused(call("run", "ocr", "--out", tmp_path, *SHORT, "--set", setting))


@pytest.mark.parametrize("role", ["name", "gold", "second_reader"])
def test_a_judge_that_is_not_known_is_told_before_anything_is_trained(role: str, tmp_path: Path) -> None:
    refused(call("run", "ocr", "--out", tmp_path, *SHORT, "--set", f"profile.judge.{role}=nowhere"))
    assert list(tmp_path.iterdir()) == []


ARGUMENTS = [
    "", "run", "run orc", "run ocr --method grdo", "run ocr --profile pockt", "run ocr --seed -1", "run ocr --seed x",
    "run ocr --budget 0", "run ocr --budget -5", "run ocr --budget many", "run ocr --method flow-grpo --budget 1",
    "run ocr --budget 9000 --set profile.budget.limit=8000", "run ocr --method nft --budget 1",
    "sweep ocr --over method.tau=0.1,0.2 --set method.tau=0.3", "run ocr --device tpu", "run ocr --set tau",
    "run ocr --set method.tau", "run ocr --set method.tau=", "run ocr --set =3", "run ../ocr", "run ocr extra",
    "run ocr --method ../gdro", "run ocr --profile ../pocket", "run ocr --prompts nowhere.txt", "nonsense",
    "run ocr --nonsense", "sweep", "sweep ocr --seeds", "sweep ocr --seeds 1,,2", "sweep ocr --seeds -1",
    "sweep ocr --over method.tau", "sweep ocr --over method.tau=", "sweep ocr --over method.tau=x",
    "sweep ocr --jobs 0", "sweep ocr --jobs many", "sweep ocr --ray", "sweep ocr --ray nonsense",
    "compare nowhere", "compare --runs nowhere", "compare --x euros", "compare --level nan", "compare --level x",
    "compare --tuned nowhere",
    "run ocr --processes 8", "run ocr --seed 99999999999999999999", "sweep ocr --seeds 0,99999999999999999999",
    "run ocr --set profile.judge.name=unified-reward", "run ocr --set profile.judge.url=ftp://x",
    "judge nowhere", "judge --runs nowhere", "judge --judge nowhere", "judge --judge unified-reward",
    "judge --judge unified-reward --judge-url nonsense", "judge --gold nowhere", "judge --second-reader nowhere",
    "eval", "eval orc", "eval ocr --images nowhere", "eval ocr --images . --lora x", "eval ocr --lora nowhere",
    "eval ocr --weights nowhere", "eval geneval --mask2former x", "eval ocr --mask2former x --clip y",
    "eval ocr --lora-scale 0,1", "eval ocr --lora x --lora-scale -1", "eval ocr --lora x --lora-scale nan",
    "eval ocr --lora x --lora-scale 0,,1", "eval ocr --lora x --lora-scale 3", "eval ocr --lora x --lora-scale 0,1",
    "eval ocr --images . --lora x --lora-scale 1",
    "eval ocr --judge nowhere", "eval ocr --judge unified-reward", "eval ocr --set method.tau=1",
    "eval ocr --judge unified-reward --judge-url nonsense", "pretrain flux", "pretrain pocket --train-images 1",
    "prompts orc", "prompts ocr -n 0", "prompts ocr --split test", "prompts text-size", "doctor --profile pockt",
    "doctor --set profile.sampler.steps=0", "tune", "tune orc", "tune ocr --trials 0", "tune ocr --trials x",
    "tune ocr --method grdo", "tune ocr --profile pockt", "tune ocr --budget 0", "tune ocr --jobs 0",
    "tune ocr --seed -1", "tune text-size", "tune ocr --budget 5000", "tune ocr --set method.tao=1",
    "tune ocr --set method.beta=1000", "run ocr --track nowhere", "sweep ocr --track nowhere",
    "compare --study nowhere", "study nowhere", "study --runs nowhere", "study --at noon", "study --pairs 0",
    "study --answers nowhere", "publish", "publish nowhere", "publish nowhere --repo a/b", "publish . --repo nowhere",
]  # fmt: skip


@pytest.mark.parametrize("words", [words for words in ARGUMENTS if words])
def test_words_that_cannot_be(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(call(*words.split()))


@pytest.mark.parametrize("option", ["--out", "--prompts", "--train-prompts"])
def test_an_empty_path_is_no_path(option: str) -> None:
    told = refused(call("run", "ocr", option, ""))
    assert "it is empty" in told


@pytest.mark.parametrize(
    ("setting", "meant"),
    [
        ("method.rounds=4", "method.online.rounds"),
        ("method.prompts=3", "method.pool.prompts"),
        ("method.learning_rate=1e-3", "method.optimiser.learning_rate"),
        ("profile.rank=4", "profile.lora.rank"),
        ("method.Tau=0.1", "method.tau"),
        ("method.taw=0.1", "'tau'"),
        ("method.pool.images.x=3", "--set method.pool.images=VALUE"),
        ("profile.budget=3000", "kind, limit, marks"),
        ("profile.judge.name=None", "'none'"),
    ],
)
def test_a_setting_of_another_group_is_what_was_meant(setting: str, meant: str, tmp_path: Path) -> None:
    assert meant in refused(call("run", "ocr", "--out", tmp_path, "--set", setting))


def test_what_is_trained_on_is_not_evaluated_on(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text('a red sign that reads "TREE"\na red sign that reads "OWL"\n')
    (tmp_path / "other.txt").write_text('a red sign that reads "OWL"\n')
    both = ("--prompts", tmp_path / "mine.txt", "--train-prompts", tmp_path / "other.txt")
    assert "1 of 2 held-out prompts are trained on" in refused(call("run", "ocr", "--out", tmp_path / "out", *both))


def test_no_command_says_what_to_type_first() -> None:
    result = call()
    assert result.exit_code == 0
    assert "gdro-bench run ocr --method gdro" in result.output


# ---------------------------------------------------------------------------------------------------------------
# Files that a user gives

FILES: dict[str, bytes] = {
    "empty": b"",
    "blank": b"\n\n",
    "latin-1": 'a sign that reads "CAFÉ"\n'.encode("latin-1"),
    "no quotes": b"a sign that reads CAFE\n",
    "empty quotes": b'a sign that reads ""\n',
    "a quote at the end": b'a sign that reads "\n',
    "binary": bytes(range(256)),
    "a megabyte": b'a sign that reads "CAFE" ' + b"x" * 1_000_000,
}


@pytest.mark.parametrize("name", FILES)
def test_a_prompt_file_that_cannot_be(name: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes(FILES[name])
    refused(call("run", "ocr", "--out", tmp_path / "out", "--prompts", tmp_path / "prompts.txt", *SHORT))


LISTS: dict[str, bytes] = {
    "empty": b"",
    "header alone": b"path,prompt\n",
    "no prompt column": b"path,text\na.png,x\n",
    "no path column": b'prompt\n"a sign ""CAFE"""\n',
    "latin-1": 'path,prompt\na.png,"a ""CAFÉ"""\n'.encode("latin-1"),
    "no picture": b'path,prompt\ngone.png,"a ""CAFE"""\n',
    "no quoted text": b"path,prompt\na.png,a sign\n",
    "a value missing": b"path,prompt\na.png,\n",
    "a broken picture": b'path,prompt\nbroken.png,"a ""CAFE"""\n',
    "a folder as picture": b'path,prompt\nfolder,"a ""CAFE"""\n',
    "a picture of a billion pixels": b'path,prompt\nhuge.png,"a ""CAFE"""\n',
    "a cell without end": b'path,prompt\na.png,"a ""CAFE"" ' + b"x" * 200_000 + b'"\n',
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_pictures_that_cannot_be(name: str, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG oops")
    (tmp_path / "folder").mkdir()
    size = struct.pack(">II", 40_000, 40_000) + b"\x08\x02\0\0\0"
    header = struct.pack(">I", 13) + b"IHDR" + size + struct.pack(">I", zlib.crc32(b"IHDR" + size))
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header)
    (tmp_path / "list.csv").write_bytes(LISTS[name])
    refused(call("eval", "ocr", "--images", tmp_path / "list.csv", "--set", "profile.reader.workers=0"))


def test_a_list_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "list.csv").write_bytes(b'\xef\xbb\xbfpath,prompt\na.png,"a ""CAFE"""\n')
    result = call("eval", "ocr", "--images", tmp_path / "list.csv", "--set", "profile.reader.workers=0")
    assert result.exit_code == 0, result.output


METADATA = [b"", b"[]", b"{}", b"oops", b'{"tag": "counting"}', b'{"prompt": 3, "tag": "colors", "include": 3}']
CLAUSES = ["-3", "0", "true", '"2"', "2.0", '1, "color": "gray"', '1, "position": ["on top of", 0]', '1}, 5, {"a": 1']
CLAUSES += [f'1{more}, "position": {position}' for more, position in (
    ("", '["above", 0]'), ("", "[5]"), ('}, {"class": "bus", "count": 1', '["above", -1]'))]  # fmt: skip
METADATA += [
    b'{"tag": "counting", "include": [{"class": "bus", "count": %s}], "prompt": "a photo"}' % clause.encode()
    for clause in CLAUSES
]
METADATA += [b'{"tag": "counting", "include": [], "prompt": "a photo"}', b'"a photo of a bus"', b"5"]


@pytest.mark.parametrize("metadata", METADATA, ids=[str(i) for i in range(len(METADATA))])
def test_geneval_metadata_that_cannot_be(metadata: bytes, tmp_path: Path) -> None:
    (tmp_path / "00000" / "samples").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "00000" / "samples" / "0000.png")
    (tmp_path / "00000" / "metadata.jsonl").write_bytes(metadata)
    refused(call("eval", "geneval", "--images", tmp_path))


def test_geneval_metadata_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "00000" / "metadata.jsonl").mkdir(parents=True)
    refused(call("eval", "geneval", "--images", tmp_path))


def test_a_task_that_has_another_s_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copied, and not renamed: its prompts would be those of the other."""
    shutil.copytree(content.find("task", "ocr"), tmp_path / "tasks" / "mine")
    monkeypatch.chdir(tmp_path)
    result = call("run", "mine", *SHORT)
    refused(result)
    assert 'name = "mine"' in result.output


def test_a_file_of_settings_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_bytes("# caf\u00e9".encode("latin-1"))
    refused(call("claims", "--runs", content.root() / "reports", "--rules", tmp_path / "rules.toml"))


@pytest.mark.parametrize("place", ["file/below", "file"])
def test_an_out_that_is_a_file(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = call("run", "ocr", "--out", tmp_path / place, *SHORT)
    refused(result)
    assert "another --out" in result.output
    assert "space" not in result.output


def test_markup_in_a_path_is_a_path(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text('path,prompt\na.png,"a ""CAFE"""\n')
    out = tmp_path / "ev[" / "]x"
    result = call(
        *("eval", "ocr", "--images", tmp_path / "list.csv", "--out", out, "--set", "profile.reader.workers=0")
    )
    assert result.exit_code == 0, repr(result.exception)
    json.loads((out / "eval.json").read_text(), parse_constant=pytest.fail)  # no bare NaN: that is no JSON


# ---------------------------------------------------------------------------------------------------------------
# Damaged files of a run


@pytest.fixture
def runs(short_run: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of a finished run to be damaged: the folder that `--runs` and `--out` take."""
    shutil.copytree(short_run[0], tmp_path / "runs")
    return tmp_path / "runs"


def the_run(runs: Path) -> Path:
    return next(path.parent for path in (runs / RUN).glob("*/run.json"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty_list(path: Path) -> None:
    path.write_text("[]")


def noise(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 4)


def gone(path: Path) -> None:
    path.unlink()


def _with(**fields: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    change.__name__ = f"with {fields}"
    return change


DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    f"{name}, {damage.__name__}": (name, damage)
    for name, damages in {
        "run.json": (
            *(cut, empty_list, noise, _with(settings={}), _with(settings=[]), _with(digests=None), _with(digests={})),
            *(_with(schema=2, settings={"method": [], "profile": {}}), _with(task=3), _with(points=[])),
        ),
        "scores.parquet": (cut, noise, gone),
        "judged.parquet": (cut, noise),
        "timing.json": (cut, empty_list),
        "samples/1.0.zip": (cut, noise),  # pictures that are gone are left out of the grids
    }.items()
    for damage in damages
}


@pytest.mark.usefixtures("sketched")
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_run_is_named_by_compare(name: str, runs: Path, tmp_path: Path) -> None:
    file, damage = DAMAGES[name]
    damage(the_run(runs) / file)
    refused(call("compare", the_run_folder(runs), "--out", tmp_path / "report"))


def the_run_folder(runs: Path) -> Path:
    return runs / RUN


@pytest.mark.parametrize("damage", [cut, noise, gone])
def test_damaged_pictures_are_named_by_judge(damage: Callable[[Path], None], runs: Path) -> None:
    folder = the_run(runs)
    (folder / "judged.parquet").unlink()
    damage(folder / "samples" / "1.0.zip")
    refused(call("judge", folder))


@pytest.mark.parametrize("damage", [cut, noise])
def test_a_damaged_judgement_is_named(damage: Callable[[Path], None], runs: Path) -> None:
    folder = the_run(runs)
    damage(folder / "judged.parquet")
    refused(call("judge", folder))


@pytest.mark.parametrize("file", ["plan.json", "checkpoint.pt", "run.json", "health.json"])
@pytest.mark.parametrize("damage", [cut, empty_list, noise])
def test_a_run_that_cannot_go_on_says_how(file: str, damage: Callable[[Path], None], runs: Path) -> None:
    folder = the_run(runs)
    if file == "checkpoint.pt":
        (folder / "run.json").rename(folder / "checkpoint.pt")
    damage(folder / file)
    if file == "plan.json":
        (folder / "run.json").unlink()
    result = call(*arguments(runs))
    refused(result)
    assert "elete" in result.output


def test_adapters_of_another_base_are_refused(runs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(WEIGHTS, other)
    tensors = load_file(other / "autoencoder.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, other / "autoencoder.safetensors")
    lora = the_run(runs) / "lora"
    refused(call("eval", "ocr", "--lora", lora, "--weights", other, "--device", "cpu"))


@pytest.mark.parametrize("file", ["pytorch_lora_weights.safetensors"])
@pytest.mark.parametrize("damage", [cut, noise, gone])
def test_damaged_adapters_are_named(file: str, damage: Callable[[Path], None], runs: Path) -> None:
    lora = the_run(runs) / "lora"
    damage(lora / file)
    refused(call("eval", "ocr", "--lora", lora, "--device", "cpu"))
