"""The comparison with other engines: order of visits, reading llama-bench, medians and ratios. No peer is needed."""

from __future__ import annotations

import json
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.peers.gguf_size import tensor_bytes
from benchmarks.peers.plan import read_plan, visits
from benchmarks.peers.report import fastest_peer, markdown, ratio, rows
from benchmarks.peers.runner import VisitError, llama_bench_command, parse_llama_bench

from wrinklefree.errors import InputError

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"

PLAN = """
[run]
threads = [1, 2]
rounds = 3
groups = [["pp8", "tg64"], ["pp512"]]
[[ours]]
name = "ours"
models.bitnet-2b = { head = "q6" }
[[peers]]
name = "a"
program = "/a/llama-bench"
flags = ["-ngl", 0]
models.bitnet-2b = { file = "a.gguf", head = "q6_K" }
[[peers]]
name = "b"
program = "/b/llama-bench"
models.bitnet-2b = { file = "b.gguf", head = "f16", note = "slow" }
models.smollm2-135m = { file = "c.gguf", head = "f16" }
"""


def _plan_file(directory: Path, text: str = PLAN) -> Path:
    path = directory / "plan.toml"
    path.write_text(text)
    return path


def test_engines_take_turns_and_another_one_begins_each_round(tmp_path: Path) -> None:
    order = list(visits(read_plan(_plan_file(tmp_path))))
    large = [v for v in order if v.shape == "bitnet-2b"]
    turns = [tuple(v.contestant.name for v in large[i : i + 3]) for i in range(0, len(large), 3)]
    # 3 rounds of 2 thread counts and 2 groups; within a turn everything but the engine is the same.
    assert turns == [("ours", "a", "b")] * 4 + [("a", "b", "ours")] * 4 + [("b", "ours", "a")] * 4
    for i in range(0, len(large), 3):
        assert len({(v.round, v.threads, v.tests) for v in large[i : i + 3]}) == 1
    assert Counter(v.contestant.name for v in order if v.shape == "smollm2-135m") == {"b": 12}
    assert [v.round for v in order] == sorted(v.round for v in order)


def test_peers_get_the_same_counts_as_the_plan(tmp_path: Path) -> None:
    visit = next(v for v in visits(read_plan(_plan_file(tmp_path))) if v.contestant.name == "a")
    command = llama_bench_command(visit.contestant, visit, 2)
    expected = "/a/llama-bench -m a.gguf -p 8 -n 64 -r 2 -t 1 -o json -ngl 0"
    assert command == expected.split()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"pp512"', '"pp0"', "pp0"),
        ("rounds = 3", "rounds = 0", "at least 1"),
        ("rounds = 3", "round = 3", "found round"),
        ("models.smollm2-135m", "models.smollm-135m", "smollm2-135m"),
        ('file = "a.gguf", ', "", "head and file"),
        ('name = "a"', 'name = "b"', "no name twice"),
        ('program = "/a/llama-bench"', "", "lacks program"),
    ],
)
def test_a_wrong_plan_is_refused_with_the_place(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in PLAN
    with pytest.raises(InputError, match=words):
        read_plan(_plan_file(tmp_path, PLAN.replace(old, new, 1)))


def test_the_example_is_a_plan() -> None:
    plan = read_plan(PEERS / "example.toml")
    assert plan.rounds * plan.repeats >= 5 and any(contestant.ours for contestant in plan.contestants)


def test_seconds_and_commit_are_read_from_llama_bench() -> None:
    entries = [
        {"build_commit": "abc", "n_prompt": 32, "n_gen": 0, "samples_ns": [500_000_000, 250_000_000]},
        {"build_commit": "abc", "n_prompt": 0, "n_gen": 64, "samples_ns": [4_000_000_000]},
    ]
    text = "a note\n[\n" + json.dumps(entries)[1:] + "\n"
    assert parse_llama_bench(text) == ("abc", {"pp32": [0.5, 0.25], "tg64": [4.0]})
    with pytest.raises(VisitError, match="no JSON"):
        parse_llama_bench("error: unable to load model")


def _record() -> dict[str, Any]:
    def contestant(name: str, head: str, note: str = "") -> dict[str, Any]:
        model = {"head": head, "note": note}
        return {"name": name, "ours": name == "ours", "models": {"bitnet-2b": model}}

    def sample(name: str, turn: int, seconds: dict[str, list[float]], others: float = 0.0) -> dict[str, Any]:
        keys = {"engine": name, "shape": "bitnet-2b", "threads": 2, "round": turn, "version": "1"}
        return {**keys, "bytes_per_token": 800_000_000, "seconds": seconds, "others": others}

    return {
        "machine": {"cpu": "a processor", "read_gb_s": {"2": [20.0, 40.0]}},
        "plan": {
            "contestants": [contestant("ours", "q6"), contestant("a", "q6_K"), contestant("b", "f16", "slow")],
            "shapes": ["bitnet-2b"],
            "threads": [2],
            "groups": [["pp8", "tg64"]],
            "rounds": 2,
        },
        "samples": [
            sample("ours", 0, {"pp8": [0.1, 0.1], "tg64": [2.0, 2.0]}),
            sample("a", 0, {"pp8": [0.2, 0.2], "tg64": [3.0, 4.0]}, 0.2),
            sample("b", 0, {"pp8": [0.16, 0.16], "tg64": [8.0, 8.0]}),
            sample("ours", 1, {"pp8": [0.1, 9.0], "tg64": [2.0, 9.0]}),
            sample("a", 1, {"pp8": [0.2, 0.2], "tg64": [4.0, 5.0]}, 0.2),
            sample("b", 1, {"pp8": [0.16, 0.16], "tg64": [8.0, 8.0]}),
        ],
        "failures": [],
    }


def test_ratios_are_against_the_fastest_peer_of_each_test() -> None:
    table = rows(_record(), "bitnet-2b", 2)
    ours, a, b = table
    assert ours.cells["tg64"].speed == 32 and a.cells["tg64"].speed == 16  # the outliers do not count
    assert ratio(ours, table, "tg64") == (2.0, "a")
    assert ratio(ours, table, "pp8") == (pytest.approx(1.6), "b")
    assert fastest_peer(table, "pp512") is None and ratio(ours, table, "pp512") is None
    assert a.steps("pp8") == pytest.approx(0.2 * 16) and b.steps("pp512") is None


def test_the_table_gives_rate_range_steps_and_disturbance() -> None:
    text = markdown(_record())
    lines = {line.split(" | ")[0]: line for line in text.splitlines() if line.startswith("|")}
    assert "| 25.6 (64%) | 32.0 (7.1-32.0) | 80.0 (0.9-80.0) 3.2 steps |" in lines["| **ours**"]
    assert "16.0! (12.8-21.3)" in lines["| a"] and "!" not in lines["| b"]
    assert "**2.00x** a | **1.60x** b" in lines["| ours / fastest peer"]
    assert "b, bitnet-2b: slow." in text and "median of 4" in text and "40.0 GB/s" in text


def test_the_size_of_tensors_is_known_without_knowing_their_types(tmp_path: Path) -> None:
    def string(text: str) -> bytes:
        return struct.pack("<Q", len(text)) + text.encode()

    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 4)
    header += string("general.architecture") + struct.pack("<I", 8) + string("llama")
    header += string("words") + struct.pack("<IIQ", 9, 8, 2) + string("a") + string("bc")
    header += string("scores") + struct.pack("<IIQ", 9, 6, 3) + bytes(12)
    header += string("general.alignment") + struct.pack("<III", 4, 64, 0)[:8]
    header += string("w") + struct.pack("<IQQIQ", 2, 64, 4, 135, 0)
    path = tmp_path / "toy.gguf"
    path.write_bytes(header + bytes(-len(header) % 64) + bytes(100))
    assert tensor_bytes(path) == 100
    path.write_bytes(b"GGML" + bytes(40))
    with pytest.raises(ValueError, match="no GGUF"):
        tensor_bytes(path)
