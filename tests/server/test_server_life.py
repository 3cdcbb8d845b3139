"""`wf serve` as a process: what it says, what it answers while it loads, how it ends; and what it refuses to start."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from raw_client import RawClient, post, status_and_error
from running_server import chat_toy
from served_process import ServedProcess

from wrinklefree.cli import main as front
from wrinklefree.cli.serve import read_keys
from wrinklefree.errors import InputError

PATH = "/v1/completions"
KEY = "key-from-the-environment"
BEARER = f"Authorization: Bearer {KEY}"
LONG = {"model": "toy", "prompt": "a", "max_tokens": 200, "seed": 1, "ignore_eos": True, "stream": True}


def test_sigterm_under_load_lets_all_finish_that_was_taken_in(tmp_path: Path) -> None:
    """One answer runs as long as the test wants, others beside it and in the queue: these streams come whole, new
    requests hear 503, and with the last one gone the exit code is 0."""
    large = chat_toy(tmp_path / "toy", max_position_embeddings=32_768)
    options, key = ("--slots", "2", "--ctx", "32768"), {"WRINKLEFREE_API_KEY": KEY}
    with ServedProcess(large, *options, environment=key) as served, ExitStack() as held:
        assert served.client.get("/v1/models").status_code == 401
        endless, *others = [held.enter_context(RawClient(served.url)) for _ in range(4)]
        endless.send(post(PATH, {**LONG, "max_tokens": 100_000}, BEARER))
        for client in others:
            client.send(post(PATH, LONG, BEARER))
        while _taken_in(served) < 1 + len(others):
            time.sleep(0.005)
        served.process.send_signal(signal.SIGTERM)
        served.wait_for("stopping")
        late = held.enter_context(RawClient(served.url))
        late.send(post(PATH, LONG, BEARER))
        status, error = status_and_error(late.read_until(b"}}"))
        assert (status, error["code"]) == (503, "stopping")
        texts = []
        for client in others:
            answer = client.read_all()
            assert answer.rstrip(b"\r\n0").endswith(b"data: [DONE]") and b'"error"' not in answer
            texts.append(_text(answer))
        assert texts[0] and texts == [texts[0]] * len(others)
        endless.socket.close()
        assert served.process.wait(60) == 0
        assert served.process.stdout is not None and served.process.stdout.read() == ""
        assert not any(KEY in line for line in served.lines)


def _taken_in(served: ServedProcess) -> int:
    """Return how many answers run, wait or have ended."""
    text = served.client.get("/metrics", headers={"authorization": f"Bearer {KEY}"}).text
    rows = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    names = ("wrinklefree_running", "wrinklefree_waiting", "wrinklefree_answers_total")
    return int(sum(float(value) for name, value in rows if name.partition("{")[0] in names))


def _text(stream: bytes) -> str:
    """Return the text of a streamed answer."""
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith(b'data: {"id"')]
    return "".join(choice["text"] for event in events for choice in event["choices"])


def test_at_the_deadline_streams_end_with_an_error(toy: Path) -> None:
    with ServedProcess(toy, "--slots", "1", "--host", "0.0.0.0", "--drain-seconds", "0") as served:
        assert any("WARNING" in line and "WITHOUT an API key" in line for line in served.lines)
        with RawClient(served.url) as client:
            client.send(post(PATH, {**LONG, "n": 8}))
            client.read_until(b"data: ")
            assert served.stop(signal.SIGINT) == 0
            last = client.read_all().rstrip(b"\r\n0").rpartition(b"data: ")[2]
            assert json.loads(last)["error"]["code"] == "stopping"


@pytest.mark.slow
def test_a_second_signal_cuts(toy: Path) -> None:
    with ServedProcess(toy, "--slots", "1") as served, RawClient(served.url) as client:
        client.send(post(PATH, {**LONG, "n": 8}))
        client.read_until(b"data: ")
        served.process.send_signal(signal.SIGTERM)
        served.wait_for("stopping")
        assert served.stop(signal.SIGTERM) == 128 + signal.SIGTERM
        assert b"[DONE]" not in client.read_all()


@pytest.mark.slow
def test_an_engine_that_cannot_go_on_ends_the_process_with_a_reason(toy: Path) -> None:
    """The request is answered with 500, not left hanging; whoever watches the process can start another."""
    broken = "from wrinklefree.server.scheduler import Scheduler as S; S._admit = lambda *_: exec('raise OSError(7)')\n"
    with ServedProcess(toy, first=broken) as served:
        answer = served.client.post(PATH, json={**LONG, "stream": False})
        assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
        assert served.process.wait(60) == 1
        served._reader.join(10)
        assert served.lines[-1].startswith("wf: OSError: 7")


def test_while_the_model_is_loaded_it_says_so(toy: Path) -> None:
    """Loading takes as long as the test wants; an order to stop does not wait for it."""
    slow = "import time; from wrinklefree.engine import Engine; Engine.load = lambda *_, **__: time.sleep(600)\n"
    with ServedProcess(toy, ready=False, first=slow) as served:
        for path in ("/health/ready", "/v1/models"):
            answer = served.client.get(path)
            assert answer.status_code == 503 and answer.json()["error"]["code"] == "loading"
            assert int(answer.headers["retry-after"]) > 0
        assert served.client.get("/health/live").status_code == 200
        page = served.client.get("/")  # it asks /v1/models again and again, and shows what that says
        assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]
        assert served.client.get("/page/main.js").status_code == 200
        assert served.stop(signal.SIGTERM) == 0


def test_a_damaged_model_ends_the_server_with_one_line(toy: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(toy, tmp_path / "toy"))
    os.truncate(damaged / "model.safetensors", 100)
    with ServedProcess(damaged, ready=False) as served:
        assert served.process.wait(60) == 2
        served._reader.join(10)
        assert "model.safetensors" in served.lines[-1] and not any("Traceback" in line for line in served.lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{toy}x"], "found no such file or directory"),
        (["{toy}", "--mode", "quick"], "mode"),
        (["{toy}", "--api-key", "short"], "--api-key: a key has 8 or more"),
        (["{toy}", "--api-key-file", "{keys}"], "--api-key-file"),
        (["{toy}", "--host", "no.such.host.invalid"], "--host"),
        (["{toy}", "--port", "{taken}"], "choose another --port"),
        (["{toy}", "--drain-seconds", "nan"], "--drain-seconds"),
        (["{toy}", "--queue", "-1"], "--queue"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[1:]),
)
def test_what_is_refused_at_the_start(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    """One line, exit code 2, and no key on the screen."""
    (tmp_path / "keys").write_text("# only a comment\n\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        names = {"toy": toy, "keys": tmp_path / "keys", "taken": port}
        assert front.main(["serve", *(word.format(**names) for word in words)]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1 and "short" not in error


def test_keys_come_from_options_and_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# people\nkey-of-alice\n\n  key-of-bob-1  \nkey-of-alice\n")
    assert read_keys(["key-of-carol"], file) == ("key-of-carol", "key-of-alice", "key-of-bob-1")
    file.write_text("key-of-alice\nkey of bob\n")
    with pytest.raises(InputError, match=r"keys:2: a key has 8 or more visible ASCII characters") as caught:
        read_keys([], file)
    assert "bob" not in str(caught.value)
