"""`wf bench`'s figures against each other and against the model's sizes. Speeds themselves are not asserted."""

from __future__ import annotations

from typing import Any

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
