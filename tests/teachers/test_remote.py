"""The remote teacher against a stand-in server: same numbers as the model itself, at the right places; every refusal.

Tolerance: a document alone and the same document in a packed row differ by float32 rounding of attention, below 1e-4
in log-probabilities of these toys.
"""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest
import torch
from stand_in_server import StandIn
from train_toys import ToyStream, toy_batch, toy_model

from wrinklefree.errors import InputError
from wrinklefree.models.forward import forward
from wrinklefree.objectives.base import predicted
from wrinklefree.teachers.base import TeacherError
from wrinklefree.teachers.completions import Client, ServerError
from wrinklefree.teachers.local import LocalTeacher
from wrinklefree.teachers.remote import RemoteServer, RemoteTeacher, parse

K = 5
HEARD: list[str] = []


def teacher_of(server: StandIn, **changes: Any) -> RemoteTeacher:
    settings = {"retries": 2, "backoff_seconds": 0.001, "timeout_seconds": 10.0, "top_k": K, **changes}
    return RemoteTeacher(RemoteServer(server.url, "toy", **settings), 64, say=HEARD.append)


@pytest.mark.parametrize("style", ["ids", "lists"])
def test_it_gives_what_the_model_gives_at_the_same_positions(style: str) -> None:
    """Packed documents go as separate prompts; entry t of an answer belongs to position t - 1."""
    model, batch = toy_model(3), toy_batch()
    expected = LocalTeacher(lambda: model, forward, top_k=K).forward(batch, frozenset())
    with StandIn(model, style=style) as server:
        teacher = teacher_of(server)
        found = teacher.forward(batch, frozenset())
        teacher.release()
    assert sorted(map(len, server.requests[0]["prompt"])) == [9, 10, 14]  # not the document of a single token
    places = predicted(batch)
    torch.testing.assert_close(found.log_probs[:, :-1][places], expected.log_probs[:, :-1][places], atol=1e-4, rtol=0)
    assert torch.equal(found.ids[:, :-1][places].long(), expected.ids[:, :-1][places])
    assert int(places.sum()) == 8 + 9 + 13


def test_tokens_named_by_text_are_refused() -> None:
    with StandIn(toy_model(3), style="text") as server, pytest.raises(InputError, match="names tokens by text"):
        teacher_of(server).forward(toy_batch(), frozenset())


def test_a_limit_on_log_probabilities_names_the_servers_flag() -> None:
    with StandIn(toy_model(3), most=4) as server, pytest.raises(InputError, match=r"top_k=5.*--max-logprobs"):
        teacher_of(server).forward(toy_batch(), frozenset())
    assert len(server.requests) == 1  # asking again would not help


def test_a_busy_server_is_asked_again_and_a_dead_one_ends_in_a_true_message() -> None:
    batch = toy_batch()
    with StandIn(toy_model(3), fail_first=2) as server:
        assert teacher_of(server).forward(batch, frozenset()).top_k == K
        assert len(server.requests) == 3 and "answered 503; attempt 3 of 3" in HEARD[-1]
        server.fail_first = 99
        with pytest.raises(TeacherError, match=r"does not answer \(answered 503; 3 attempts\); start it again"):
            teacher_of(server).forward(batch, frozenset())
    with pytest.raises(TeacherError, match="refused"):
        teacher_of(server).forward(batch, frozenset())


def test_a_slow_server_runs_into_the_time_out() -> None:
    with StandIn(toy_model(3)) as server, server._lock, pytest.raises(TeacherError, match="timed out"):
        teacher_of(server, retries=0, timeout_seconds=0.05).forward(toy_batch(), frozenset())


def test_an_answer_that_breaks_off_is_asked_for_again() -> None:
    half = b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"choices"'
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            for _ in range(2):
                connection, _ = server.accept()
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(half)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        client = Client("the server", retries=1, backoff_seconds=0.001, say=HEARD.append)
        with pytest.raises(ServerError, match=r"does not answer \(.*2 attempts"):
            client.ask(f"http://127.0.0.1:{server.getsockname()[1]}/v1/models")
        thread.join(10)
        assert not thread.is_alive()


def test_the_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_KEY", "very-secret")
    with StandIn(toy_model(3)) as server:
        teacher = teacher_of(server, key_variable="TOY_KEY")
        teacher.forward(toy_batch(), frozenset())
        assert server.headers[0]["Authorization"] == "Bearer very-secret"
        server.respond = lambda *given: (401, {"error": "wrong key very-secret"})  # type: ignore[method-assign]
        with pytest.raises(InputError, match="401; set its key in TOY_KEY") as error:
            teacher.forward(toy_batch(), frozenset())
        server.respond = lambda *given: (422, {"error": "wrong key very-secret"})  # type: ignore[method-assign]
        with pytest.raises(InputError, match="wrong key \\*\\*\\*") as other:
            teacher.forward(toy_batch(), frozenset())
    assert "very-secret" not in str(error.value) + str(other.value) + "".join(HEARD) + repr(teacher.server)


def test_asking_ahead_changes_no_answer_and_is_bounded() -> None:
    stream = ToyStream()
    batches = [stream.batch(2 * i, 2) for i in range(4)]
    with StandIn(toy_model(3)) as server:
        plain = [teacher_of(server).forward(batch, frozenset()) for batch in batches]
        server.requests.clear()
        teacher = teacher_of(server)
        teacher.prefetch(batches)
        teacher.wait(batches[:2])
        again = [teacher.forward(batch, frozenset()) for batch in batches]
        assert len(server.requests) == 4  # each once
        teacher.prefetch(batches)
        teacher.prefetch(batches[:1])  # the run took another way: the rest is dropped
        assert len(teacher._pending) == 1
        teacher.release()
    assert not teacher.loaded
    for a, b in zip(plain, again, strict=True):
        assert torch.equal(a.ids, b.ids) and torch.equal(a.log_probs, b.log_probs)


def test_answers_that_do_not_fit_are_refused() -> None:
    entry = {
        "token_id:1": -0.5,
        "token_id:2": float("-inf"),
        "token_id:3": None,
        "token_id:4": -0.5,
        "token_id:9": -2.0,
    }
    good = {"logprobs": {"tokens": ["token_id:7", "token_id:1"], "top_logprobs": [None, entry]}}
    ids, log_probs = parse(good, [7, 1], 3, 64)
    assert ids.tolist() == [[1, 4, 9]] and log_probs.tolist() == [[-0.5, -0.5, -2.0]]  # equal ones by id, no -inf
    with pytest.raises(InputError, match=r"gives 3 tokens at position 1, teacher\.top_k is 4"):
        parse(good, [7, 1], 4, 64)
    with pytest.raises(InputError, match="echoes other tokens"):
        parse(good, [7, 2], 2, 64)
    with pytest.raises(InputError, match="names token 9, the student has 8"):
        parse(good, [7, 1], 3, 8)
    with pytest.raises(InputError, match="incomplete"):
        parse({"logprobs": {"tokens": ["token_id:7", "token_id:1"], "top_logprobs": [None]}}, [7, 1], 1, 64)
    with pytest.raises(InputError, match="no logprobs"):
        parse({}, [7, 1], 1, 64)
    with pytest.raises(InputError, match="needed is http"):
        RemoteServer("localhost:8000", "toy", 5)
