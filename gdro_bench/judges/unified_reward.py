"""UnifiedReward 2.0 (arXiv 2503.05236) as a judge: alignment, coherence and style, each 1 to 5, from a server that
speaks OpenAI's chat protocol (vLLM does), or of a copy on this machine through transformers.

An answer must hold all three axes as numbers in 1..5. One that does not is asked for once more, then left unscored:
nothing is put in its place. A picture that the server fails on is unscored; a server that is gone stops the run.
The judge client's settings: pictures travel as PNG, without loss; an answer has at most 256 tokens, at temperature 0.

Differences from the published client: 1. the request is in our own words, after the published form. 2. it sends JPEG of
quality 95. 3. it allows 4,096 tokens: the three lines asked for take some 40, and an answer cut short is unscored.
"""

from __future__ import annotations

import base64
import io
import math
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import requests
import torch
from numpy.typing import NDArray
from PIL import Image
from urllib3.exceptions import MaxRetryError

from gdro_bench.errors import BenchError
from gdro_bench.instruments import hub
from gdro_bench.judges.address import check_judge, credentials, without_credentials
from gdro_bench.models import pick_device
from gdro_bench.profile import JudgeConfig
from gdro_bench.score import Images, Score
from gdro_bench.task import Prompt

AXES = ("alignment", "coherence", "style")
LOWEST, HIGHEST = 1.0, 5.0
ANSWER_TOKENS = 256
REQUEST = """You see a picture that was made from a caption. Judge it on three axes, each rated from 1 to 5:
- Alignment: how well the picture shows what the caption says.
- Coherence: how free the picture is of glitches, distortions and impossible parts.
- Style: how good the picture looks, whatever the caption says.
Answer with exactly these three lines and nothing else, with your ratings in place of X, Y and Z:
Alignment Score (1-5): X
Coherence Score (1-5): Y
Style Score (1-5): Z

Your task is provided as follows:
Text Caption: [{caption}]"""
_ANSWER = re.compile(r"(Alignment|Coherence|Style) Score \(1-5\):[ \t]*(\S*)", re.IGNORECASE)
_NUMBER = re.compile(r"\d+(\.\d+)?")


@dataclass(frozen=True, slots=True)
class Server:
    """Where the judge is (`url` ends in /v1) and how patiently it is asked; times in seconds."""

    url: str
    model: str
    timeout: float = 120.0
    concurrency: int = 16
    attempts: int = 4
    backoff: float = 1.0  # doubles from attempt to attempt


class _Failed(Exception):
    """The server answered, but with nothing that can be used."""


def parse(answer: str) -> dict[str, float] | None:
    """The three axes of an answer, or None unless each is there as a number in 1..5; the last mention counts, because
    some models repeat the instruction first."""
    last = {axis.lower(): rating.strip("*.,;") for axis, rating in _ANSWER.findall(answer)}
    if set(last) != set(AXES) or not all(_NUMBER.fullmatch(rating) for rating in last.values()):
        return None
    rated = {axis: float(last[axis]) for axis in AXES}
    return rated if all(LOWEST <= value <= HIGHEST for value in rated.values()) else None


class UnifiedReward:
    """A `Scorer`: `value` is the mean of the three axes, which are its parts; NaN where there is no valid answer."""

    def __init__(self, backend: Served | Local) -> None:
        self.backend = backend
        self.name = f"{backend.model_name} (1-5)"

    def __call__(self, images: Images, prompts: Sequence[Prompt]) -> list[Score]:
        with ThreadPoolExecutor(self.backend.concurrency) as threads:
            return list(threads.map(self._judge, images, prompts))

    def _judge(self, image: NDArray[np.uint8], prompt: Prompt) -> Score:
        answer = ""
        for _ in range(self.backend.tries):
            try:
                answer = self.backend(image, prompt)
            except _Failed as error:
                return _unscored(str(error))
            rated = parse(answer)
            if rated is not None:
                return Score(sum(rated.values()) / len(rated), rated, answer)
        return _unscored(f"no three ratings in {answer[:80]!r}")


class Local:
    """The judge on this machine, one picture at a time, decoded greedily: a second answer would be the same."""

    concurrency = 1
    tries = 1

    def __init__(self, source: str, device: str) -> None:
        """Raises:
        BenchError: the model cannot be loaded from `source`, a folder or a hub id."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.model_name = Path(source).name
        self.processor = hub.load(AutoProcessor, source, "The judge's processor", "judge")
        model = hub.load_model(AutoModelForImageTextToText, source, "The judge", "judge", dtype="auto")
        self.model = model.to(device).eval()

    @torch.no_grad()
    def __call__(self, image: NDArray[np.uint8], prompt: Prompt) -> str:
        text = {"type": "text", "text": REQUEST.format(caption=prompt.text)}
        turn = {"role": "user", "content": [{"type": "image", "image": Image.fromarray(image)}, text]}
        inputs = self.processor.apply_chat_template(
            [turn], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(self.model.device)
        output = self.model.generate(**inputs, do_sample=False, max_new_tokens=ANSWER_TOKENS)
        answer: str = self.processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return answer


class Served:
    """The judge behind a server."""

    tries = 2  # one re-ask

    def __init__(self, server: Server) -> None:
        self.server = server
        self.address = without_credentials(server.url).rstrip("/")  # to be shown
        self.model_name = server.model
        self.concurrency = server.concurrency

    def __call__(self, image: NDArray[np.uint8], prompt: Prompt) -> str:
        """The server's answer, after as many attempts as it takes.

        Raises:
            _Failed: it keeps failing on this picture.
            BenchError: it is not there, does not answer in time, or refuses the request.
        """
        trouble: Exception = _Failed("never asked")
        for attempt in range(self.server.attempts):
            if attempt:
                time.sleep(self.server.backoff * 2 ** (attempt - 1))
            try:
                return self._post(_message(image, prompt))
            except (_Failed, requests.RequestException) as error:
                trouble = error
        if _is_gone(trouble):
            raise BenchError(
                f"The judge at {self.address} does not answer ({type(trouble).__name__}).",
                "Start it again and type the same command; where vLLM is not installed, `pip install vllm` in an "
                "environment of its own, then `vllm serve` as baselines/full-scale.md says.",
            ) from trouble
        raise trouble if isinstance(trouble, _Failed) else _Failed(f"the judge broke off: {type(trouble).__name__}")

    def _post(self, message: dict[str, Any]) -> str:
        body = {"model": self.server.model, "messages": [message], "temperature": 0, "max_tokens": ANSWER_TOKENS}
        response = requests.post(
            f"{self.address}/chat/completions",
            json=body,
            timeout=self.server.timeout,
            auth=credentials(self.server.url),
        )
        if response.status_code == 429 or response.status_code >= 500:
            raise _Failed(f"the judge answered HTTP {response.status_code}")
        if response.status_code != 200:
            raise BenchError(
                f"The judge at {self.address} refuses: HTTP {response.status_code}, {response.text[:200]!r}.",
                f"Check its address and that it serves {self.server.model!r}.",
            )
        try:
            return str(response.json()["choices"][0]["message"]["content"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise _Failed(f"the judge's answer is no chat completion: {error}") from error


def open_server(config: JudgeConfig) -> UnifiedReward:
    """The judge of a profile, behind a server.

    Raises:
        BenchError: the profile gives no address, or one that cannot be an address.
    """
    check_judge("unified-reward", config.url)
    return UnifiedReward(Served(Server(config.url, config.model)))


def open_local(config: JudgeConfig) -> UnifiedReward:
    """The judge of a profile, on this machine; `model` is a folder or a hub id."""
    return UnifiedReward(Local(config.model, pick_device("auto")))


def _is_gone(trouble: Exception) -> bool:
    """Whether no connection could be made or no answer came in time, and not just this one answer broke off."""
    unreached = isinstance(trouble, requests.ConnectionError) and isinstance(trouble.args[0], MaxRetryError)
    return unreached or isinstance(trouble, requests.Timeout)


def _message(image: NDArray[np.uint8], prompt: Prompt) -> dict[str, Any]:
    """One user turn: the picture as PNG, then the request."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    picture = {"type": "image_url", "image_url": {"url": uri}}
    return {"role": "user", "content": [picture, {"type": "text", "text": REQUEST.format(caption=prompt.text)}]}


def _unscored(why: str) -> Score:
    return Score(math.nan, dict.fromkeys(AXES, math.nan), f"not judged: {why}")
