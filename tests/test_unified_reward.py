"""The judge against a real server on loopback, in every mood."""

import base64
import io
import time
from http.server import BaseHTTPRequestHandler

import numpy as np
import pytest
from judge_server import RIGHT, Judge, half_closed, slow
from PIL import Image

from gdro_bench.errors import BenchError
from gdro_bench.judges import unified_reward
from gdro_bench.judges.address import check_address, without_credentials
from gdro_bench.judges.unified_reward import Served, Server, UnifiedReward
from gdro_bench.task import Prompt

ECHO = "Alignment Score (1-5): X\nCoherence Score (1-5): Y\nStyle Score (1-5): Z\n"
IMAGE = np.random.default_rng(0).integers(0, 256, (1, 8, 12, 3), dtype=np.uint8)
PROMPT = [Prompt('a sign "A" [b]', "A")]


def asked(server: Judge, images: np.ndarray = IMAGE, prompts: list[Prompt] = PROMPT, **patience: float):
    settings = {"timeout": 5.0, "concurrency": 4, "attempts": 3, "backoff": 0.01} | patience
    return UnifiedReward(Served(Server(server.url, "judge", **settings)))(images, prompts)


def test_a_right_answer_gives_three_axes_and_their_mean(server):
    score = asked(server)[0]
    assert score.parts == {"alignment": 4.5, "coherence": 3.0, "style": 2.694700002670288}
    assert score.value == pytest.approx((4.5 + 3 + 2.694700002670288) / 3)


def test_it_is_asked_coldly_with_the_picture_and_the_caption(server):
    asked(server)
    request = server.asked[0]
    assert (request["model"], request["temperature"]) == ("judge", 0)
    picture, text = request["messages"][0]["content"]
    assert text["text"].endswith('Text Caption: [a sign "A" [b]]')
    sent = Image.open(io.BytesIO(base64.b64decode(picture["image_url"]["url"].split(",")[1])))
    assert (np.asarray(sent) == IMAGE[0]).all()


def test_an_instruction_that_is_repeated_first_does_no_harm(server):
    server.answers = [ECHO + RIGHT]
    assert asked(server)[0].parts["style"] == 2.694700002670288


@pytest.mark.parametrize(
    "answer",
    [
        ECHO,
        "A fine picture.",
        RIGHT.replace("4.5", "nan"),
        RIGHT.replace("4.5", "10"),
        RIGHT.replace("4.5", "0.9"),
        RIGHT.replace("4.5", "4.5/5"),
        RIGHT.replace("4.5", "-3"),
        RIGHT.replace("Style", "Taste"),
        "",
    ],
)
def test_an_answer_without_three_ratings_is_asked_for_once_more_then_left_unscored(server, answer):
    server.answers = [answer]
    score = asked(server)[0]
    assert not score.scored
    assert np.isnan(list(score.parts.values())).all()
    assert score.note.startswith("not judged")
    assert len(server.asked) == 2
    server.answers = [answer, RIGHT]
    assert asked(server)[0].scored


@pytest.mark.parametrize("trouble", [500, 503, 429, half_closed])
def test_a_passing_trouble_is_ridden_out(server, trouble):
    server.answers = [trouble, trouble, RIGHT]
    assert asked(server)[0].scored
    assert len(server.asked) == 3


@pytest.mark.parametrize(("trouble", "said"), [(500, "HTTP 500"), (half_closed, "broke off")])
def test_a_picture_that_the_server_always_fails_on_is_unscored(server, trouble, said):
    server.answers = [trouble]
    score = asked(server)[0]
    assert not score.scored
    assert said in score.note


def test_an_answer_that_is_no_chat_completion_is_unscored(server):
    server.answers = [lambda handler: handler.reply(200, b"<html>")]
    assert "no chat completion" in asked(server)[0].note


def test_a_server_that_is_too_slow_stops_with_a_remedy(server):
    server.answers = [slow]
    with pytest.raises(BenchError, match=r"does not answer .* Start it again"):
        asked(server, timeout=0.1)


def test_a_slow_answer_in_time_is_an_answer(server):
    server.answers = [lambda handler: (slow(handler), handler.complete(RIGHT))]
    assert asked(server)[0].scored


def test_a_server_that_is_gone_stops_with_a_remedy(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(BenchError, match=r"does not answer .* Start it again"):
        asked(server)


def test_a_request_that_is_refused_stops_at_once(server):
    server.answers = [404]
    with pytest.raises(BenchError, match=r"refuses: HTTP 404.* serves 'judge'"):
        asked(server)
    assert len(server.asked) == 1


def test_many_pictures_keep_their_order_and_few_are_asked_at_a_time(server):
    n, busy, most = 24, [0], [0]

    def count(handler: BaseHTTPRequestHandler) -> None:
        with server.lock:
            busy[0] += 1
            most[0] = max(most[0], busy[0])
        time.sleep(0.01)
        with server.lock:
            busy[0] -= 1
        handler.complete(RIGHT)

    server.answers = [count]
    scores = asked(server, np.repeat(IMAGE, n, axis=0), PROMPT * n, concurrency=3)
    assert [score.scored for score in scores] == [True] * n
    assert 1 <= most[0] <= 3


def test_the_last_mention_of_an_axis_counts():
    twice = RIGHT + "\nStyle Score (1-5): 1"
    assert unified_reward.parse(twice) == {"alignment": 4.5, "coherence": 3.0, "style": 1.0}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://127.0.0.1:8080/v1", "http://127.0.0.1:8080/v1"),
        ("https://me:secret@host:1/v1", "https://host:1/v1"),
        ("https://me:sec@ret@host/v1", "https://host/v1"),
        ("https://me:sec/ret@host/v1", "https://host/v1"),
        ("https://me:12/secret@host/v1", "https://host/v1"),
        ("https://me:#secret@host/v1", "https://host/v1"),
        ("https://to/ken@host/v1", "https://host/v1"),
        ("me:secret@host/v1", "host/v1"),
        ("http://host//v1", "http://host//v1"),
        ("", ""),
    ],
)
def test_an_address_is_shown_without_its_credentials(url, shown):
    assert without_credentials(url) == shown


@pytest.mark.parametrize("url", ["http://me:12/secret@host/v1", "http://me:#secret@host/v1", "http://to/ken@host/v1"])
def test_a_password_that_would_be_taken_for_a_path_is_refused(url):
    with pytest.raises(BenchError, match=r"'http://host/v1' is no web address.*%2F"):
        check_address(url)
    check_address("http://me:12%2Fsecret@host/v1")


@pytest.mark.parametrize("trouble", [404, "gone"])
def test_errors_hold_no_credentials(server, trouble):
    server.answers = [404]
    address = server.url if trouble == 404 else "http://127.0.0.1:9/v1"
    judge = UnifiedReward(Served(Server(address.replace("://", "://me:secret@"), "judge", attempts=1)))
    with pytest.raises(BenchError) as error:
        judge(IMAGE, PROMPT)
    assert address in str(error.value)
    assert "secret" not in str(error.value) + judge.name
