"""`wf bench`'s figures against each other and against the model's sizes. Speeds themselves are not asserted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import packed_toys
import pytest

pytest.importorskip("wrinklefree._native", reason="wf bench: native engine not built, not checked")

from wrinklefree.errors import InputError
from wrinklefree.eval import speed
from wrinklefree.eval.speed import SpeedOptions, measure_speed

TOY = speed._llama(64, 128, 2, (4, 2, 16), 256, True)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "SHAPES", {**speed.SHAPES, "toy": TOY})
    monkeypatch.setattr(speed, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(speed, "LIMIT_SECONDS", 0.01)


def _measure(**options: Any) -> dict[str, Any]:
    return measure_speed(shape="toy", options=SpeedOptions(**options))


def test_every_test_asked_for_is_there_for_every_thread_count() -> None:
    report = _measure(threads=(1, 2), prompt=16, decode=4, block=8, batch=(2,), repeat=3)
    names = [(r["test"], r["threads"]) for r in report["results"]]
    tests = ["prompt16", "decode4", "block8", "batch2"]
    assert names == [(test, count) for count in (1, 2) for test in tests]
    for result in report["results"]:
        tok_s = result["tok_s"]
        assert 0 < tok_s["min"] <= tok_s["median"] <= tok_s["max"]
        assert result["gb_s"] >= 0 and result["bandwidth_share"] >= 0 and result["compute_share"] >= 0
    machine = report["machine"]
    assert machine["threads"] == 2 and machine["read_gb_s"] > 0 and machine["int8_gops"] > 0


def test_the_json_is_the_documented_one() -> None:
    report = _measure(threads=(1,), prompt=0, decode=2, repeat=1)
    assert set(report) == {"machine", "model", "results"}
    assert set(report["machine"]) == {"cpu", "isa", "threads", "read_gb_s", "int8_gops"}
    assert set(report["model"]) == {"name", "params", "bytes_per_token", "bits_per_weight"}
    keys = {"test", "threads", "tok_s", "gb_s", "bandwidth_share", "compute_share"}
    assert [set(result) for result in report["results"]] == [keys]


def test_fewer_bits_are_fewer_bytes() -> None:
    """Of a toy of 5 column blocks a row: 1.6 bits for 2, and 8, 6, 4 and 16 bits for a number of the head."""
    wide = speed._llama(320, 320, 1, (5, 5, 64), 4096, True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "SHAPES", {"toy": wide})
        bytes_of = {
            (type_name, head): _measure(threads=(1,), prompt=0, decode=1, repeat=1, type=type_name, head=head)["model"][
                "bytes_per_token"
            ]
            for type_name, head in [("t2", "q8"), ("t1.6", "q8"), ("t2", "q6"), ("t2", "q4"), ("t2", "f16")]
        }
    ternary = 7 * 320 * 320
    assert bytes_of["t2", "q8"] - bytes_of["t1.6", "q8"] == pytest.approx(0.4 / 8 * ternary)
    numbers = 4096 * 320
    assert bytes_of["t2", "q8"] - bytes_of["t2", "q6"] == pytest.approx((8 - 6.25) / 8 * numbers + 4 * 4096)
    assert bytes_of["t2", "q8"] - bytes_of["t2", "q4"] == pytest.approx((8 - 4.5) / 8 * numbers + 4 * 4096)
    assert bytes_of["t2", "f16"] - bytes_of["t2", "q8"] == pytest.approx(numbers - 4 * 4096)


def test_a_batch_reads_the_weights_once_a_step() -> None:
    report = _measure(threads=(1,), prompt=0, decode=8, batch=(4,), repeat=1)
    batch = next(result for result in report["results"] if result["test"] == "batch4")
    gb_s = batch["tok_s"]["median"] / 4 * report["model"]["bytes_per_token"] * 1e-9
    assert batch["gb_s"] == pytest.approx(gb_s, abs=1e-3)


def test_a_model_is_measured_as_it_is_stored_or_as_asked(tmp_path: Path) -> None:
    info = replace(packed_toys.INFO, embedding="q4", layout="t1.6-r16c64")
    config = {**packed_toys.CONFIG, "hidden_size": 320, "head_dim": 80}
    directory = packed_toys.write(tmp_path / "toy", config, info)
    stored, two_bits = (
        measure_speed(directory, options=SpeedOptions(threads=(1,), prompt=0, decode=2, repeat=1, type=type_name))
        for type_name in (None, "t2")
    )
    assert stored["model"]["bytes_per_token"] < two_bits["model"]["bytes_per_token"]
    assert stored["model"]["params"] == two_bits["model"]["params"]


def test_sizes_are_those_of_the_architecture() -> None:
    """Ternary: 2 layers of (64 x 64 + 2 * 32 x 64 + 64 x 64) + 3 * 64 x 128; table: 256 x 64."""
    model = _measure(threads=(1,), prompt=0, decode=2, repeat=1)["model"]
    assert model["params"] == 2 * (64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 64 * 128) + 256 * 64
    assert model["bits_per_weight"] == pytest.approx(8 * model["bytes_per_token"] / model["params"], abs=1e-3)


def test_progress_runs_from_nought_towards_one() -> None:
    seen: list[float] = []
    options = SpeedOptions(threads=(1, 2), prompt=4, decode=2, repeat=1)
    measure_speed(shape="toy", options=options, progress=lambda share, text: seen.append(share))
    assert seen == pytest.approx([i / 10 for i in range(10)])  # 2 threads x (loading, limits twice, two tests)


def test_rates_follow_from_speeds() -> None:
    report = _measure(threads=(1,), prompt=0, decode=64, repeat=2)
    (decode,) = report["results"]
    gb_s = decode["tok_s"]["median"] * report["model"]["bytes_per_token"] * 1e-9
    assert decode["gb_s"] == pytest.approx(gb_s, abs=1e-3)


def test_shapes_match_their_published_parameter_counts() -> None:
    published = {
        "bitnet-2b": 2.41e9,
        "smollm2-135m": 134.5e6,
        "qwen3-0.6b": 596e6,
        "llama-3b": 3.21e9,
        "llama-8b": 8.03e9,
    }
    for name, count in published.items():
        config = speed.parse_config(speed.SHAPES[name], name)
        subject = speed._Subject(name, config, lambda _: None)  # type: ignore[arg-type, return-value]
        assert subject.params == pytest.approx(count, rel=0.005), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": "smollm-135m"}, "did you mean 'smollm2-135m'"),
        ({}, "give either a packed directory or --shape"),
        ({"shape": "toy", "options": SpeedOptions(type="t3")}, "unknown layout 't3'"),
        ({"shape": "toy", "options": SpeedOptions(head="q5")}, "unknown head 'q5'"),
        ({"shape": "toy", "model": "x"}, "give either a packed directory or --shape"),
    ],
)
def test_what_to_measure_must_be_said_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure_speed(**arguments)


@pytest.mark.parametrize("options", [{"repeat": 0}, {"prompt": -1}, {"threads": (0,)}, {"prompt": 0, "decode": 0}])
def test_options_outside_their_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"found|nothing to measure"):
        SpeedOptions(**options)
