"""`wf generate` and `wf chat` in every mode, on toys with a marker: output, JSON, trace, refusals."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import packed_toys
import pytest

from wrinklefree.cli.main import main
from wrinklefree.eval.trace import read_trace

MASK = 259
PLAIN = ["--prompt", "abc def", "--threads", "1", "--temperature", "0", "--max-tokens", "24"]


def write(directory: Path, variant: str, block_size: int | None = 8) -> Path:
    clean = "causal" if variant == "causal" else "block_causal"
    marker = {"mask_token_id": MASK, "block_size": block_size, "token_shift": variant != "llada", "variant": variant,
              "clean_half": clean}  # fmt: skip
    return packed_toys.write(
        directory, {**packed_toys.CONFIG, "vocab_size": 260}, replace(packed_toys.INFO, dlm=marker)
    )


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("modes")
    whole = write(root / "whole", "llada", None)
    plain = packed_toys.write(root / "plain")
    made = {variant: write(root / variant, variant) for variant in ("fast_dllm", "llada", "causal")}
    return {name: str(path) for name, path in {**made, "whole": whole, "plain": plain}.items()}


def figures(capsys: pytest.CaptureFixture[str], words: list[str]) -> dict[str, Any]:
    assert main([*words, "--json", "-"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_each_mode_says_what_it_did(toys: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    block = figures(capsys, ["generate", toys["fast_dllm"], *PLAIN, "--threshold", "0.03"])
    assert block["mode"] == "block" and block["completion_tokens"] == len(block["tokens"])
    assert block["forwards"] < 24 and block["tokens_per_forward"] == block["completion_tokens"] / block["forwards"]
    assert "proposed" not in block and MASK not in block["tokens"]
    one = figures(capsys, ["generate", toys["llada"], *PLAIN, "--mode", "block", "--tokens-per-forward", "1"])
    assert one["forwards"] >= one["completion_tokens"]
    token = figures(capsys, ["generate", toys["causal"], *PLAIN, "--mode", "ar"])
    assert token["mode"] == "ar" and token["forwards"] == token["completion_tokens"]
    guessed = figures(capsys, ["generate", toys["causal"], *PLAIN, "--mode", "speculative", "--window", "2"])
    assert guessed["mode"] == "speculative" and guessed["tokens"] == token["tokens"]
    assert 0 <= guessed["accepted"] <= guessed["proposed"] and guessed["text"] == token["text"]
    assert figures(capsys, ["generate", toys["plain"], *PLAIN])["mode"] == "ar"


def test_the_text_streams_in_block_mode(toys: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", toys["fast_dllm"], *PLAIN, "--entropy-bound", "6", "--sub-block", "4"]
    text = figures(capsys, words)["text"]
    assert main(words) == 0
    assert capsys.readouterr().out == text + "\n"


@pytest.mark.parametrize(("toy", "mode"), [("fast_dllm", "block"), ("causal", "speculative"), ("causal", "ar")])
def test_the_trace_is_the_answer_in_the_order_it_was_decided(
    toys: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], toy: str, mode: str
) -> None:
    path = tmp_path / "trace.jsonl"
    options = {"block": ["--threshold", "0.03", "--sub-block", "4"], "speculative": ["--window", "2"], "ar": []}[mode]
    answer = figures(capsys, ["generate", toys[toy], *PLAIN, "--mode", mode, *options, "--trace", str(path)])
    header, *passes, end = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    blocks = (8, 4) if mode == "block" else (None, None)
    assert (header["format"], header["mode"], header["block_size"], header["sub_block"]) == (1, mode, *blocks)
    assert len(header["prompt"]) == len(header["texts"]) == answer["prompt_tokens"] and "".join(header["texts"])
    assert end == {"end": answer["finish_reason"], "tokens": answer["tokens"], "forwards": answer["forwards"]}
    decided = {position: token for line in passes for position, token, _, _ in line["decided"]}
    first = answer["prompt_tokens"]
    assert [decided[first + i] for i in range(len(answer["tokens"]))] == answer["tokens"]
    assert [line["pass"] for line in passes] == list(range(1, answer["forwards"] + 1))
    known: set[int] = set(range(first))
    for line in passes:
        known |= {position for position, *_ in line["decided"]}
        assert line["rows"][0] <= line["rows"][1] and line["ms"] >= 0
        for position, token, confidence, _ in line["waiting"]:
            assert position not in known and token != MASK
            assert mode != "block" or 0 < confidence < 1
    assert (mode == "ar") == (not any(line["waiting"] for line in passes))
    read = read_trace(path)  # what draws it takes it
    assert read.mode == mode and len(read.passes) == answer["forwards"]


def test_an_answer_that_is_broken_off_leaves_the_trace_so_far(
    toys: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupting(io.StringIO):
        def write(self, text: str) -> int:
            raise KeyboardInterrupt

    path = tmp_path / "trace.jsonl"
    monkeypatch.setattr(sys, "stdout", Interrupting())
    assert main(["generate", toys["fast_dllm"], *PLAIN, "--threshold", "1", "--trace", str(path)]) == 130
    lines = path.read_text("utf-8").splitlines()
    assert len(lines) >= 2 and "end" not in json.loads(lines[-1])


@pytest.mark.parametrize(
    ("toy", "words", "message"),
    [
        ("plain", ["--mode", "block"], "not trained for block diffusion (no dlm marker); use mode ar"),
        ("plain", ["--mode", "speculative"], "not trained for block diffusion"),
        ("whole", ["--mode", "block"], "block_size null"),
        ("llada", ["--mode", "speculative"], "needs variant causal"),
        ("fast_dllm", ["--mode", "diffusion"], "unknown mode 'diffusion'"),
        ("fast_dllm", ["--threshold", "2"], "threshold: found 2.0"),
        ("fast_dllm", ["--threshold", "0.5", "--entropy-bound", "1"], "--threshold and --entropy-bound: found both"),
        ("fast_dllm", ["--tokens-per-forward", "2", "--entropy-bound", "1"], "found both"),
        ("fast_dllm", ["--tokens-per-forward", "0"], "tokens_per_forward: found 0"),
        ("fast_dllm", ["--sub-block", "9"], "sub_block: found 9, this model's blocks have 8"),
        ("fast_dllm", ["--window", "3"], "--window: is an option of mode speculative, but this text"),
        ("causal", ["--mode", "ar", "--threshold", "0.5"], "--threshold: is an option of mode block"),
        ("fast_dllm", ["--trace", "/nowhere/trace.jsonl"], "the directory /nowhere does not exist"),
        ("fast_dllm", ["--trace", "/"], "--trace /: is a directory"),
    ],
)
def test_t16_refusals(
    toys: dict[str, str], capsys: pytest.CaptureFixture[str], toy: str, words: list[str], message: str
) -> None:
    assert main(["generate", toys[toy], *PLAIN, *words]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and len(printed.err.splitlines()) == 1 and printed.out == ""


def test_a_prompt_that_leaves_no_block_is_refused(toys: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", toys["fast_dllm"], "--prompt", "a" * 16, "--ctx", "17", "--threads", "1"]
    assert main(words) == 2
    assert "shorten it or load the model with a larger context" in capsys.readouterr().err


def test_chat_decodes_in_blocks(
    toys: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def talk(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
        code = main(["chat", toys["fast_dllm"], "--max-tokens", "5", "--temperature", "0", "--threads", "1", *words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    assert talk("--mode", "block", "--threshold", "0")[0] == 0
    assert talk("--mode", "block", "--threshold", "0")[1] != talk("--mode", "ar")[1]
    code, out, err = talk("--mode", "speculative")
    assert (code, out) == (2, "") and "needs variant causal" in err
    assert "--window: is an option of mode speculative" in talk("--window", "2")[2]
