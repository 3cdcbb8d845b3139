"""The load benchmark against a real server of a toy: figures that follow from others, and faults that it must see."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.append(str(Path(__file__).parents[1] / "server"))
sys.path.append(str(Path(__file__).parents[1] / "artifact"))
sys.path.append(str(Path(__file__).parents[1] / "engine"))
sys.path.append(str(Path(__file__).parents[1] / "export"))

from benchmarks.serving import report
from benchmarks.serving.answers import piece_times, streamed
from benchmarks.serving.client import Address, Exchange, ask, payload
from benchmarks.serving.load import closed, prepared
from benchmarks.serving.measure import figures
from benchmarks.serving.requests import Workload
from benchmarks.serving.run import main
from benchmarks.serving.soak import growth
from running_server import MODEL, RunningServer, chat_toy

pytest.importorskip("wrinklefree._native", reason="the engine is not built; the load benchmark is not checked")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_toy(tmp_path_factory.mktemp("serving") / "toy", max_position_embeddings=4096)


def _event(name: str = "a", **choice: Any) -> bytes:
    chunk = {"id": name, "choices": [{"index": 0, "delta": {}, "finish_reason": None, **choice}]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


TEXT = _event(delta={"content": "x"})
END = _event(finish_reason="length")
USAGE = b'data: {"id": "a", "choices": [], "usage": {"completion_tokens": 2, "prompt_tokens": 5}}\n\n'
DONE = b"data: [DONE]\n\n"


def _exchange(*pieces: bytes, error: str = "") -> Exchange:
    """An answer of one chunk for each piece, cut into arrivals of 7 bytes, one a second."""
    raw = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    raw += b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    cut = [raw[at : at + 7] for at in range(12, len(raw), 7)]
    arrivals = [(float(moment), data) for moment, data in enumerate([raw[:12], *cut], 1)]
    return Exchange(7, 0.0, float(len(arrivals)), arrivals, error)


def test_a_whole_stream_has_no_fault_and_its_pieces_have_times() -> None:
    answer = streamed(_exchange(TEXT, b": keep-alive\n\n", TEXT, END, USAGE, DONE), 2)
    assert (answer.text, answer.tokens, answer.prompt_tokens, answer.faults) == ("xx", 2, 5, ())
    assert len(answer.times) == 2 and 0 < answer.times[0] < answer.times[1] < answer.ended
    assert answer.gaps == [answer.times[1] - answer.times[0]] and answer.first_seconds == answer.times[0]


@pytest.mark.parametrize(
    ("pieces", "fault"),
    [
        ((TEXT, TEXT, END, USAGE), "[DONE] 0 times"),
        ((TEXT, TEXT, END, USAGE, DONE, DONE), "[DONE] 2 times"),
        ((TEXT, TEXT, END, USAGE, DONE, TEXT), "behind [DONE]"),
        ((TEXT, _event("b", delta={"content": "y"}), END, USAGE, DONE), "2 ids"),
        ((TEXT, TEXT, _event(finish_reason="stop"), USAGE, DONE), "['stop']"),
        ((TEXT, TEXT, USAGE, DONE), "finish reasons []"),
        ((TEXT, TEXT, END, USAGE.replace(b": 2", b": 1"), DONE), "1 tokens instead of 2"),
        ((TEXT, b'data: {"error": {"message": "broken"}}\n\n', DONE), "broken"),
    ],
)
def test_faults_of_a_stream_are_seen(pieces: tuple[bytes, ...], fault: str) -> None:
    assert any(fault in found for found in streamed(_exchange(*pieces), 2).faults)


def test_a_broken_connection_is_a_fault() -> None:
    assert streamed(_exchange(TEXT, error="closed"), 2).faults == ("closed",)
    assert len(piece_times(_exchange(TEXT, TEXT))) == 2


@pytest.mark.parametrize(
    "body", [b"Content-Length: 2\r\n\r\nok", b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"]
)
def test_the_end_is_seen_however_the_bytes_are_cut(body: bytes) -> None:
    """The connection stays open: only the answer itself says where it ends."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for byte in b"HTTP/1.1 200 OK\r\n" + body:
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        ended.set()

    ended = asyncio.Event()

    async def run() -> Exchange:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            found = await ask(Address(host, port, ""), b"GET / HTTP/1.1\r\n\r\n", Exchange(0), 20.0)
            await ended.wait()
            return found

    exchange = asyncio.run(run())
    assert (exchange.status, exchange.error) == (200, "") and b"ok" in b"".join(d for _, d in exchange.arrivals)


def test_figures_follow_from_the_answers() -> None:
    answer = streamed(_exchange(TEXT, TEXT, END, USAGE, DONE), 2)
    found = figures([answer, streamed(_exchange(TEXT), 2)], 0.0, answer.times[0] + 0.5)
    assert (found["requests"], found["faulty"], found["tokens_per_piece"]) == (2, 1, 1.0)
    assert found["tokens_per_second"] == pytest.approx(1 / (answer.times[0] + 0.5))
    assert found["first_ms"] == {name: 1e3 * answer.times[0] for name in ("p50", "p95", "p99")}
    assert found["between_ms"]["p50"] == 1e3 * answer.gaps[0]


def test_requests_are_functions_of_their_number() -> None:
    distinct, shared = Workload("distinct", 4), Workload("shared", 4, different=3)
    texts = [json.dumps(distinct.body(number)["messages"]) for number in range(300)]
    assert len(set(texts)) == 300 == len({text[:60] for text in texts})
    assert shared.body(4) == shared.body(1) != shared.body(2) and (shared.same(4), distinct.same(4)) == (1, 4)


def test_real_answers_of_a_crowd_are_whole(toy: Path) -> None:
    with RunningServer(toy, slots=2, context=2300) as server:
        host, port = server.url.removeprefix("http://").split(":")
        address = Address(host, int(port), MODEL)
        for workload in (Workload("distinct", 6), Workload("shared", 6, different=2)):
            numbers = iter(range(100))
            exchanges = asyncio.run(closed(address, workload, 3, 0.0, numbers, at_least=6, prefetched=2))
            answers = [streamed(exchange, 6) for exchange in exchanges]
            assert len(answers) >= 6 and [answer.faults for answer in answers] == [()] * len(answers)
            for answer in answers[:3]:
                alone = asyncio.run(ask(address, prepared(address, workload, answer.number), Exchange(0)))
                assert streamed(alone, 6).text == answer.text
        wrong = asyncio.run(ask(address, payload(address, "/v1/nothing", {}), Exchange(0)))
        assert (wrong.status, wrong.error) == (404, "")
    assert "no connection" in asyncio.run(ask(address, b"", Exchange(0))).error


def test_all_of_it_against_wf_serve(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Processes, phases, comparison with answers alone, floods and report, in seconds."""
    out = tmp_path / "results" / "toy"
    sizes = [
        "--seconds=0.1",
        "--workloads=distinct",
        "--rounds=1",
        "--slots=2",
        "--context=1000",
        "--tokens=4",
        "--threads=1",
    ]
    code = main(
        ["--model", str(toy), *sizes, "--streams", "1", "3", "--modes=ar", "--workloads=distinct", "--out", str(out)]
    )
    record = json.loads(out.with_suffix(".json").read_text())
    assert code == 0 and [p["streams"] for p in record["phases"]] == [1, 3]
    assert all(p["faulty"] == 0 and p["checked"]["compared"] > 0 for p in record["phases"])
    flood = record["floods"][0]
    assert flood["goodput"]["requests"] == flood["goodput"]["refused"] + flood["goodput"]["answered"]
    assert capsys.readouterr().out.strip() == out.with_suffix(".md").read_text().strip()
    assert report.wrong(record) == []
    record["phases"][1]["checked"]["different"] = 1
    assert "3 streams, round 1: 0 faulty, 1 different" in report.wrong(record)[0]


def test_growth_of_memory() -> None:
    samples = [{"requests": float(n), "memory_bytes": 1000.0 + max(0, n - 5) * 3} for n in range(10)]
    found = growth(samples)
    assert found["bytes_per_request"] == pytest.approx(3.0) and found["last_bytes"] == found["peak_bytes"] == 1012
