"""One real `wf serve` with one slot, and what clients, disks and files do to it: the next answer is right."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from raw_client import RawClient, post, status_and_error
from served_process import ServedProcess

PATH = "/v1/completions"
SHORT = {"model": "toy", "prompt": "The quick brown", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
LONG = {**SHORT, "max_tokens": 450, "stream": True}
SECRET = "nobody-may-log-this"


@pytest.fixture(scope="module")
def model(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the toy that a test may destroy."""
    return Path(shutil.copytree(toy, tmp_path_factory.mktemp("served") / "toy"))


@pytest.fixture(scope="module")
def served(model: Path) -> Iterator[ServedProcess]:
    with ServedProcess(model, "--slots", "1", "--ctx", "512") as process:
        yield process


@pytest.fixture(scope="module")
def expected(served: ServedProcess) -> str:
    return _ask(served)


@pytest.fixture(autouse=True)
def the_next_answer_is_right(served: ServedProcess, expected: str) -> Iterator[None]:
    yield
    assert _ask(served) == expected


def _ask(served: ServedProcess) -> str:
    answer = served.client.post(PATH, json=SHORT)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def test_a_client_that_is_killed_in_the_middle_of_a_stream(served: ServedProcess) -> None:
    """With a reset, as the kernel sends for a process that was killed; with one slot, the next had to wait for it."""
    for _ in range(5):
        with RawClient(served.url) as client:
            client.send(post(PATH, LONG))
            client.read_until(b"data: ")
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _open_half(client: RawClient) -> None:
    """Nothing is ever sent."""


def _stop_in_headers(client: RawClient) -> None:
    client.send(b"POST /v1/completions HTTP/1.1\r\nHost: local")


def _stop_in_body(client: RawClient) -> None:
    client.send(post(PATH, SHORT)[:-3])


@pytest.mark.parametrize("begin", [_open_half, _stop_in_headers, _stop_in_body])
def test_many_who_never_finish_asking(served: ServedProcess, expected: str, begin: Callable[[RawClient], None]) -> None:
    """Half-open sockets and slowloris: others are served while all of them are connected."""
    with ExitStack() as held:
        for _ in range(100):
            begin(held.enter_context(RawClient(served.url)))
        assert _ask(served) == expected


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (post(PATH, {**SHORT, "prompt": "a" * 10_000_000}), 413, "body_too_large"),
        (post(PATH, b'{"model": "toy", "prompt": "\xff\xfe\xc3"}'), 400, "invalid_utf8"),
        (post(PATH, b"\x00\x01{]garbage"), 400, None),
        (post(PATH, b""), 400, None),
        (post(PATH, b"[" * 100_000), 400, "too_deep"),
        (post(PATH, {**SHORT, "prompt": "\ud800"}), 400, None),
        (post(PATH, SHORT, *(f"X-{i}: y" for i in range(10_000))), 431, "headers_too_large"),
        (b"\x16\x03\x01 this is no HTTP \r\n\r\n", 400, "invalid_http"),
    ],
    ids=["10MB", "utf8", "garbage", "empty", "deep", "surrogate", "10000-headers", "no-http"],
)
def test_requests_that_are_none(served: ServedProcess, request_: bytes, status: int, code: str | None) -> None:
    with RawClient(served.url) as client:
        client.send(request_)
        found, error = status_and_error(client.read_until(b"}}"))
        assert found == status and (code is None or error["code"] == code)
        assert "/" not in error["message"] and "Traceback" not in error["message"]


def test_log_lines_are_bounded_and_tell_no_prompt(served: ServedProcess) -> None:
    before = len(served.lines)
    for _ in range(400):
        served.client.get(f"/nowhere?{SECRET}", headers={"authorization": SECRET})
    served.client.post(PATH, json={**SHORT, "prompt": SECRET})
    served.client.get("/a%0Ab%1b[31m")
    logged = served.lines[before:]
    assert 0 < len(logged) < 350
    assert not any(SECRET in line or "\x1b" in line for line in logged)


def test_files_of_the_model_are_truncated_then_deleted(served: ServedProcess, model: Path, expected: str) -> None:
    """Weights are held in memory of the process: what happens to the files does not reach it."""
    for file in model.iterdir():
        os.truncate(file, 10)
    assert _ask(served) == expected
    shutil.rmtree(model)
    assert _ask(served) == expected


def test_a_full_disk_behind_the_log(toy: Path, expected: str) -> None:
    with Path("/dev/full").open("w") as full, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        with ServedProcess(toy, "--slots", "1", port=port, stderr=full) as blind:
            for _ in range(3):
                assert _ask(blind) == expected
            assert blind.stop(signal.SIGTERM) == 0
