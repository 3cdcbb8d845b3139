"""The overhead benchmark runs: every candidate has a row, a layer that cannot run here says why, values are checked."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import qat_overhead


def broken(linear: nn.Linear) -> nn.Module:
    raise ModuleNotFoundError("No module named 'triton'")


def test_rows_have_ratios_or_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = [each for each in qat_overhead.candidates() if "Auto" not in each.name and "onebit" not in each.name][:3]
    monkeypatch.setattr(qat_overhead, "candidates", lambda: [*mine, qat_overhead.Candidate("other", broken)])
    for what in qat_overhead.WHAT:
        rows = qat_overhead.measure(what, 8, 2, torch.float32, 2, "cpu", "")
        assert [row["layer"] for row in rows] == [*(each.name for each in mine), "other"]
        assert rows[0]["ratio"] == 1.0 and all(row["milliseconds"] > 0 for row in rows[:-1])
        assert rows[-1]["failed"] == "ModuleNotFoundError: No module named 'triton'"


def test_all_candidates_of_one_granularity_compute_the_same() -> None:
    outputs = {
        each.name: qat_overhead.build(each, "linears", 8, torch.float32).micro_batch()
        for each in qat_overhead.candidates()
        if "per tensor" in each.name
    }
    floats, integers = outputs.values()
    for a, b in zip(floats, integers, strict=True):
        assert torch.allclose(a, b, atol=1e-4)
