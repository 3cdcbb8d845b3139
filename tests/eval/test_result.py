"""A result's document: the figures of the measurement, the files' own hashes, and what is needed to repeat it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toy_checkpoints

from wrinklefree.artifact.markdown import table
from wrinklefree.cli.main import main
from wrinklefree.data.document import Document
from wrinklefree.eval.loss import held_out_loss
from wrinklefree.eval.result import Figure, value_text, weights_of
from wrinklefree.eval.text import EvaluationText, evaluation_text
from wrinklefree.export.export import export

pytest.importorskip("wrinklefree._native", reason="the engine is not built")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    export(toy_checkpoints.write(root / "checkpoint"), root / "packed", verify=False)
    (root / "text.txt").write_text("Some text | to be scored.\n" * 12, encoding="utf-8")
    return root / "packed"


def test_a_result_says_how_to_repeat_it(packed: Path, tmp_path: Path) -> None:
    text = str(packed.with_name("text.txt"))
    files = [str(tmp_path / "a.json"), str(tmp_path / "a.md")]
    words = ["eval", str(packed), "--perplexity", text, "--window", "64", "--threads", "1", "--limit", "120"]
    assert main([*words, "--json", files[0], "--markdown", files[1]]) == 0
    found = json.loads(Path(files[0]).read_text())
    # What programs have read since before there were documents.
    assert {"model", "runs_on", "loss", "perplexity", "bits_per_byte", "tokens", "window", "stride"} <= found.keys()
    weights = packed / "model.safetensors"
    assert found["bytes"] == weights.stat().st_size
    assert found["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert found["text_sha256"] == hashlib.sha256(Path(text).read_bytes()).hexdigest()
    assert found["how"]["threads"] == 1 and found["settings"]["limit"] == 120 and found["limit"] == 120
    assert found["provenance"]["machine"]["cores"] >= 1 and "commit" in found["provenance"]
    by_name = {figure["name"]: figure for figure in found["figures"]}
    assert by_name["perplexity"]["value"] == found["perplexity"]
    assert by_name["perplexity"]["error"] == pytest.approx(found["perplexity"] * found["standard_error"])
    assert by_name["perplexity"]["settings"]["window"] == 64 and not by_name["perplexity"]["higher_is_better"]
    written = Path(files[1]).read_text()
    assert f"| perplexity | {found['perplexity']:,.2f} ± " in written and found["sha256"] in written
    for line in written.splitlines():
        assert not line.startswith("|") or line.count("|") - line.count("\\|") in (3, 4)


def test_markdown_needs_its_directory(packed: Path, tmp_path: Path) -> None:
    assert main(["eval", str(packed), "--markdown", str(tmp_path / "no" / "a.md")]) == 2


def test_the_standard_error_of_equal_windows_is_that_of_their_mean() -> None:
    table_of_logits = np.random.default_rng(0).normal(0, 2, (50, 50)).astype(np.float32)
    text = evaluation_text([Document("a", "x" * 400)], lambda t: list(np.arange(len(t)) ** 2 % 47), 20)
    report = held_out_loss(lambda ids: table_of_logits[ids], text)
    each = [held_out_loss(lambda ids: table_of_logits[ids], replaced(text, n)).loss for n in range(len(text.windows))]
    assert report.standard_error == pytest.approx(np.std(each, ddof=1) / np.sqrt(len(each)))
    assert held_out_loss(lambda ids: table_of_logits[ids], replaced(text, 0)).standard_error is None


def replaced(text: EvaluationText, number: int) -> EvaluationText:
    return replace(text, windows=text.windows[number : number + 1])


def test_weights_are_those_of_the_directory(tmp_path: Path) -> None:
    assert weights_of("someone/model") == {} and weights_of(str(tmp_path)) == {}
    for name in ("b.safetensors", "a.safetensors", "config.json"):
        (tmp_path / name).write_bytes(name.encode())
    expected = hashlib.sha256(b"a.safetensorsb.safetensors").hexdigest()
    assert weights_of(str(tmp_path)) == {"bytes": 26, "sha256": expected}
    assert weights_of(str(tmp_path / "b.safetensors"))["bytes"] == 13


def test_figures_as_text() -> None:
    assert [value_text(*each) for each in ((0.5, None), (0.51234, 0.01), (12345.678, 1.0))] == [
        "0.5000", "0.5123 ± 0.0100", "12,345.68 ± 1.00",
    ]  # fmt: skip
    assert table(("a", "b"), [("1", "2")]).splitlines() == ["| a | b |", "| --- | --- |", "| 1 | 2 |"]
    assert Figure("x", 1.0, None, True, {}).to_json()["error"] is None
