"""The model card of a run's adapters, by the hub's own classes, and its upload to a hub on loopback."""

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from huggingface_hub import ModelCard
from known_runs import rejudge

from gdro_bench.cli import main
from gdro_bench.comparison import entries
from gdro_bench.engine import card, judging, record
from gdro_bench.stats import draws_of, estimate

RECORD = Path(__file__).parents[1] / "reports" / "ocr-pocket" / "runs" / "gdro-s0"


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A finished run of the reports, as if its adapters had been kept."""
    folder = tmp_path / "gdro-s0"
    shutil.copytree(RECORD, folder, ignore=shutil.ignore_patterns("samples"))
    (folder / "lora").mkdir()
    (folder / "lora" / "pytorch_lora_weights.safetensors").write_bytes(b"weights")
    (folder / "sheet.png").write_bytes(b"pictures")
    return folder


def loaded(folder: Path) -> ModelCard:
    card.write(folder)
    return ModelCard.load(folder / "lora" / "README.md")


def change(folder: Path, **fields: object) -> None:
    record.write(replace(record.read(folder), **fields), folder)


def test_the_hub_s_classes_read_the_results(run_folder: Path) -> None:
    data, last = loaded(run_folder).data, record.read(run_folder).points[-1]
    assert (data.library_name, data.license, data.pipeline_tag) == ("diffusers", "apache-2.0", "text-to-image")
    assert data.model_name == "gdro-ocr-pocket-s0"
    reward, corrected = data.eval_results
    assert (reward.metric_type, reward.metric_value) == ("reward", round(last.reward.mean, 4))
    assert reward.metric_args == {
        "low": round(last.reward.low, 4), "high": round(last.reward.high, 4), "interval": "95 % bootstrap",
        "prompts": 120,
    }  # fmt: skip
    assert reward.dataset_name == "ocr, held-out prompts"
    assert corrected.metric_type == "corrected"


def test_the_corrected_score_and_what_moved_are_those_of_compare(run_folder: Path) -> None:
    text = str(loaded(run_folder))
    loaded_run = entries.load(run_folder)
    entry, prompts = entries.Entry("gdro", (loaded_run,)), draws_of(loaded_run.prompts, seed=0)
    corrected = estimate(float(entry.mean("corrected")[-1]), entry.replicates("corrected", prompts)[:, -1])
    assert f"| corrected score, of 120 prompts | | {corrected.mean:.3f} [" in text
    for name in ("gold (share of the prompt's facts that the picture shows)", "path kl", "text area"):
        part = {"path kl": "path_kl", "text area": "text_area"}.get(name, "gold")
        mean = float(entry.mean(part)[-1])
        assert f"| {name} | {entry.mean(part)[0]:.3f} | {mean:.3f} [" in text
    assert record.command(loaded_run.run) in text
    assert loaded_run.judges["judge"] in text


@pytest.mark.parametrize(
    ("source", "licence", "named"),
    [
        ("black-forest-labs/FLUX.1-dev", "other", "flux-1-dev-non-commercial-license"),
        ("stabilityai/stable-diffusion-3.5-medium", "other", "stabilityai-ai-community"),
        ("someone/else", None, None),
    ],
)
def test_a_base_of_the_hub_is_named_with_its_licence(
    run_folder: Path, source: str, licence: str | None, named: str | None
) -> None:
    settings = record.read(run_folder).settings
    change(run_folder, settings=settings | {"profile": settings["profile"] | {"pretrained": {"source": source}}})
    data = loaded(run_folder).data
    assert (data.base_model, data.license, getattr(data, "license_name", None)) == (source, licence, named)
    assert f'from_pretrained("{source}")' in (run_folder / "lora" / "README.md").read_text()


@pytest.mark.parametrize("source", ["./flux", "/models/flux", "~/models/flux", "models/flux/dev"])
def test_a_base_in_a_folder_is_no_name_on_the_hub(run_folder: Path, source: str) -> None:
    settings = record.read(run_folder).settings
    change(run_folder, settings=settings | {"profile": settings["profile"] | {"pretrained": {"source": source}}})
    found = loaded(run_folder)
    assert found.data.base_model is None
    assert source not in str(found).split("## Made by")[0]


def test_a_run_that_was_not_judged_says_so(run_folder: Path) -> None:
    (run_folder / "judged.parquet").unlink()
    found = loaded(run_folder)
    assert [result.metric_type for result in found.data.eval_results] == ["reward"]
    assert "judge: none, so it is not known" in str(found)
    assert "| corrected score, of 0 prompts | | not known |" in str(found)


def test_the_corrected_score_names_the_prompts_that_were_judged(run_folder: Path) -> None:
    table = judging.read(run_folder)
    rejudge(run_folder, table[table["prompt"] < 25])
    reward, corrected = loaded(run_folder).data.eval_results
    assert (reward.metric_args["prompts"], corrected.metric_args["prompts"]) == (120, 25)


def test_a_base_in_a_folder_that_looks_like_a_name_is_none(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "flux").mkdir(parents=True)
    settings = record.read(run_folder).settings
    change(run_folder, settings=settings | {"profile": settings["profile"] | {"pretrained": {"source": "models/flux"}}})
    assert loaded(run_folder).data.base_model is None


def test_a_model_of_a_plug_in_has_no_licence_of_ours(run_folder: Path) -> None:
    settings = record.read(run_folder).settings
    change(run_folder, settings=settings | {"profile": settings["profile"] | {"model": "theirs"}})
    assert loaded(run_folder).data.license is None


def test_a_run_without_adapters_has_no_card(run_folder: Path) -> None:
    shutil.rmtree(run_folder / "lora")
    card.write(run_folder)
    assert not (run_folder / "lora").exists()


# ---------------------------------------------------------------------------------------------------------------
# Publishing


class Hub(ThreadingHTTPServer):
    """As much of the hub as an upload of small files asks for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.uploaded: dict[str, bytes] = {}
        self.message, self.asked, self.refuses = "", {}, False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer: dict[str, object] = {"errors": [], "warnings": []}  # of a check of the card's metadata
        if self.path == "/api/repos/create":
            self.server.asked = json.loads(body)
            answer = {"url": f"{self.server.url}/anna/flux-ocr"}
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            answer = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        elif "/commit/" in self.path:
            self.commit(body)
            answer = {"commitUrl": f"{self.server.url}/anna/flux-ocr/commit/1", "commitOid": "1"}
        self.reply(403 if self.server.refuses else 200, answer)

    def do_GET(self) -> None:
        self.reply(403 if self.server.refuses else 200, {"id": "anna/flux-ocr", "sha": "0", "siblings": []})

    def commit(self, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "header":
                self.server.message = line["value"]["summary"]
            else:
                self.server.uploaded[line["value"]["path"]] = base64.b64decode(line["value"]["content"])

    def reply(self, status: int, answer: dict[str, object]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    thread = threading.Thread(target=made.serve_forever, args=(0.05,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def publish(folder: Path, url: str, *options: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the hub's library reads its address when it is imported."""
    command = [sys.executable, "-m", "gdro_bench.cli", "publish", str(folder), "--repo", "anna/flux-ocr", *options]
    environment = os.environ | {"HF_ENDPOINT": url, "HF_TOKEN": "hf_none", "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HOME": str(folder / "hub")}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def test_publishing_is_dry_by_default(run_folder: Path, hub: Hub) -> None:
    result = publish(run_folder, hub.url)
    assert result.returncode == 0, result.stderr
    assert "Nothing was uploaded. Add --upload to do it." in result.stdout
    assert "evidence/run.json" in result.stdout
    assert (hub.uploaded, hub.asked) == ({}, {})


def test_publishing_uploads_adapters_card_and_evidence(run_folder: Path, hub: Hub) -> None:
    result = publish(run_folder, hub.url, "--upload")
    assert result.returncode == 0, result.stderr
    assert f"Uploaded: {hub.url}/anna/flux-ocr" in result.stdout
    assert hub.message == "gdro on ocr, seed 0"
    assert hub.asked.get("private") or hub.asked.get("visibility") == "private"  # as the library's version says it
    assert set(hub.uploaded) == {
        "README.md", "sheet.png", "pytorch_lora_weights.safetensors", "evidence/run.json", "evidence/scores.parquet",
        "evidence/judged.parquet",
    }  # fmt: skip
    assert hub.uploaded["evidence/run.json"] == (run_folder / "run.json").read_bytes()
    assert "](sheet.png)" in hub.uploaded["README.md"].decode()  # as it lies there


def test_a_hub_that_refuses_or_is_not_there_is_a_sentence(run_folder: Path, hub: Hub) -> None:
    hub.refuses = True
    refused = publish(run_folder, hub.url, "--upload")
    nowhere = publish(run_folder, "http://127.0.0.1:9", "--upload")
    for result, said in ((refused, "The hub refused anna/flux-ocr"), (nowhere, "The hub cannot be reached")):
        assert result.returncode == 1
        assert said in result.stderr
        assert "Traceback" not in result.stderr


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["publish", *map(str, arguments)])


@pytest.mark.parametrize("name", ["../etc", "anna", "a/x--y", "a/x-", "a/x..y", "a/x.git", "a/" + "x" * 97, "a/b/c"])
def test_what_the_hub_would_refuse_is_told_before(name: str, run_folder: Path) -> None:
    assert "is no name on the hub" in call(run_folder, "--repo", name).output


def test_bad_input_is_a_sentence_and_a_remedy(run_folder: Path, tmp_path: Path) -> None:
    assert "has no run record" in call(tmp_path, "--repo", "anna/x").output
    shutil.rmtree(run_folder / "lora")
    assert "has no lora/" in call(run_folder, "--repo", "anna/x").output
