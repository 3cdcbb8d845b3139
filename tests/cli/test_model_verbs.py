"""inspect, export, generate, chat and doctor on toy models: what they print, what they write, how they refuse."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import packed_toys
import pytest
import tokenizer_toys
import toy_checkpoints

from wrinklefree.cli.main import main


class _Stdin(io.TextIOWrapper):
    """Standard input from bytes; no terminal."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed_toys.write(tmp_path_factory.mktemp("packed") / "model")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_checkpoints.write(tmp_path_factory.mktemp("checkpoint") / "model")


def _json(capsys: pytest.CaptureFixture[str], words: list[str]) -> dict[str, Any]:
    assert main([*words, "--json", "-"]) == 0
    value: dict[str, Any] = json.loads(capsys.readouterr().out)  # nothing else may be on standard output
    return value


def _refused(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    """Exit 2, one line on standard error that says ``message``, no trace, nothing on standard output."""
    assert main(words) == 2
    printed = capsys.readouterr()
    assert message in printed.err and len(printed.err.splitlines()) == 1 and printed.out == ""


def test_export_then_inspect_then_generate(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "packed"
    report = _json(capsys, ["export", str(checkpoint), str(out), "--threads", "1"])
    assert report["codes"]["layers"] == 14
    assert report["agreement"]["greedy_tokens_equal"] <= report["agreement"]["of"] == 96
    assert sum(t["written_bytes"] for t in report["tensors"]) < report["written_bytes"] < report["source_bytes"]
    found = _json(capsys, ["inspect", str(out)])
    assert found["kind"] == "packed" and found["changed_files"] == []
    assert found["zeros"] == pytest.approx(report["codes"]["zeros_written"])
    assert found["bits_per_weight"] == pytest.approx(report["bits_per_weight"])
    answer = _json(capsys, ["generate", str(out), "--prompt", "abc", "--max-tokens", "5", "--seed", "7"])
    assert set(answer) == {
        "text", "tokens", "prompt_tokens", "completion_tokens", "finish_reason", "mode", "forwards",
        "tokens_per_forward", "tok_s",
        "time_to_first_token_s", "seed",
    }  # fmt: skip
    assert answer["completion_tokens"] == len(answer["tokens"]) <= 5 and answer["seed"] == 7
    assert answer["prompt_tokens"] == 3


def test_export_says_what_each_tensor_costs(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(checkpoint), str(tmp_path / "out"), "--no-verify", "--embedding", "f16"]) == 0
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if "model.embed_tokens" in line)
    assert "F32" in row and "66,048" in row and "F16" in row and "33,024" in row
    assert "not verified" in printed


def test_inspect_a_checkpoint_and_a_gguf(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _json(capsys, ["inspect", str(checkpoint)])
    assert found["kind"] == "checkpoint" and found["training"]["stage"] == "stage1_subln"
    assert 0.2 < found["zeros"] < 0.6 and found["tokenizer"]["eos"] == ["</s> (257)"]
    toy = tmp_path / "toy.gguf"
    assert main(["export", str(checkpoint), str(toy), "--format", "gguf-tq2_0", "--no-verify"]) == 0
    printed = capsys.readouterr().out
    # 64 columns and a scale for each 64: no block of 256, so another type, and the table says why
    assert "Q4_0: 64 columns are no multiple of 256" in printed and "not verified" in printed
    assert _json(capsys, ["inspect", str(toy)])["kind"] == "gguf"
    _refused(capsys, ["export", str(checkpoint), str(toy), "--format", "gguf-tq2_0"], "exists already")
    words = ["export", str(checkpoint), str(tmp_path / "i"), "--format", "gguf-i2_s", "--fallback", "none"]
    _refused(capsys, words, "Give --fallback q4_0")
    (tmp_path / "text").write_text("hello")
    _refused(capsys, ["inspect", str(tmp_path / "text")], "is no GGUF")
    _refused(capsys, ["inspect", str(tmp_path / "none")], "found no such model")


def test_inspect_notices_a_changed_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = packed_toys.write(tmp_path / "model")
    content = bytearray((model / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (model / "model.safetensors").write_bytes(content)
    assert main(["inspect", str(model)]) == 0
    assert "SHA-256 differs from config.json: model.safetensors" in capsys.readouterr().out


def test_json_goes_to_a_file_and_tables_to_standard_output(
    tmp_path: Path, packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(packed), "--json", str(tmp_path / "found.json")]) == 0
    assert json.loads((tmp_path / "found.json").read_text())["kind"] == "packed"
    assert "self_attn.q_proj" in capsys.readouterr().out
    _refused(capsys, ["inspect", str(packed), "--json", str(tmp_path / "no" / "x.json")], "does not exist")


def test_generate_is_repeatable_and_streams(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for _ in range(2):
        assert main(["generate", str(packed), "--prompt", "abc", "--max-tokens", "8", "--seed", "3"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    value = _json(capsys, ["generate", str(packed), "--prompt", "abc", "--max-tokens", "8", "--seed", "3"])
    assert texts[0] == value["text"] + "\n"


def test_generate_reads_standard_input(
    packed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", _Stdin("café".encode()))
    assert _json(capsys, ["generate", str(packed), "--max-tokens", "1"])["prompt_tokens"] == 5
    monkeypatch.setattr(sys, "stdin", _Stdin(b"caf\xe9"))
    _refused(capsys, ["generate", str(packed)], "standard input is not UTF-8 at byte 3")
    monkeypatch.setattr(sys, "stdin", _Stdin(b""))
    _refused(capsys, ["generate", str(packed)], "found nothing")


def test_generate_uses_the_template_when_asked(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = _json(capsys, ["generate", str(packed), "--prompt", "hi", "--max-tokens", "1"])
    chat = _json(capsys, ["generate", str(packed), "--prompt", "hi", "--max-tokens", "1", "--chat"])
    assert chat["prompt_tokens"] > plain["prompt_tokens"]


def test_generate_refuses_wrong_inputs(
    tmp_path: Path, packed: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [
        ([str(tmp_path / "none"), "--prompt", "a"], "none"),
        ([str(checkpoint), "--prompt", "a"], "write it first: wf export"),
        ([str(packed), "--prompt", ""], "found nothing"),
        ([str(packed), "--prompt", "caf\udce9"], "not UTF-8"),
        ([str(packed), "--prompt", "a" * 200], "more than the context of 128"),
        ([str(packed), "--prompt", "abcdef", "--ctx", "4"], "more than the context of 4"),
        ([str(packed), "--prompt", "a", "--mode", "blok"], "unknown mode 'blok'; did you mean 'block'?"),
        ([str(packed), "--prompt", "a", "--mode", "block"], "no dlm marker"),
        ([str(packed), "--prompt", "a", "--temperature", "-1"], "temperature"),
        ([str(packed), "--prompt", "a", "--top-p", "1.5"], "top_p"),
        ([str(packed), "--prompt", "a", "--max-tokens", "0"], "max_tokens"),
        ([str(packed), "--prompt", "a", "--stop", ""], "stop"),
    ]
    for words, message in cases:
        _refused(capsys, ["generate", *words], message)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["truncated", "garbage", "missing"])
def test_damaged_packed_models(tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, damage: str) -> None:
    model = packed_toys.write(tmp_path / "model")
    path = model / file
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:200] if damage == "truncated" else b"\xde\xad" * 500)
    for verb in (["inspect"], ["generate", "--prompt", "a"]):
        if verb == ["inspect"] and (file, damage) == ("tokenizer.json", "missing"):
            continue  # inspect shows what is there
        _refused(capsys, [verb[0], str(model), *verb[1:]], file)


def test_chat_keeps_a_conversation(
    packed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", _Stdin(b"hello\n\nagain\n/reset\nonce more\n/exit\nnever read\n"))
    assert main(["chat", str(packed), "--max-tokens", "3", "--seed", "1", "--system", "Be brief."]) == 0
    assert len(capsys.readouterr().out.encode().split(b"\n")) >= 4


def test_chat_forgets_the_oldest_turns_and_refuses_what_cannot_fit(
    packed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", _Stdin(b"\n".join([b"x" * 40] * 5)))
    assert main(["chat", str(packed), "--max-tokens", "3", "--seed", "1"]) == 0
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", _Stdin(b"x" * 300))
    assert main(["chat", str(packed), "--max-tokens", "3"]) == 2
    assert "too long for the context of 128" in capsys.readouterr().err


def test_chat_needs_a_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = packed_toys.write(tmp_path / "model")
    tokenizer_toys.write(model, template=None)
    (model / "chat_template.jinja").unlink()
    _refused(capsys, ["chat", str(model)], "no chat template")


def test_doctor_names_credentials_and_never_shows_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_value")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert main(["doctor", "--no-probe"]) == 0
    assert "hf_secret_value" not in capsys.readouterr().out
    found = _json(capsys, ["doctor", "--no-probe"])
    assert found["credentials"]["Hugging Face"] is True
    assert found["engine"]["kernels"] in found["engine"]["runnable"] and found["engine"]["reason"]
    assert found["engine"]["prefetch bytes"] >= 0 and found["engine"]["prefetch reason"]
    assert found["engine"]["threads"] >= 1 and found["engine"]["threads reason"]
    assert found["packages"]["numpy"] and found["torch"]["installed"] in (True, False)


def test_doctor_measures_bandwidth(capsys: pytest.CaptureFixture[str]) -> None:
    engine = _json(capsys, ["doctor"])["engine"]
    for threads in {"1 thread", f"{engine['threads']} threads" if engine["threads"] > 1 else "1 thread"}:
        assert 0.1 < engine[f"memory read GB/s, {threads}"] < 5000
