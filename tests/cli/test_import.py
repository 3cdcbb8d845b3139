"""`wf import`: a foreign file becomes a packed directory, a checkpoint or a plain one, with the same numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_toys import Changes, toy_config, toy_parts, write_foreign

from wrinklefree.artifact.manifest import WEIGHTS
from wrinklefree.artifact.packed_reader import packed_parts
from wrinklefree.artifact.packed_writer import write_packed
from wrinklefree.artifact.parts import ModelParts, TernaryPart
from wrinklefree.artifact.safetensors_file import SafetensorsFile
from wrinklefree.cli.main import main

_WITHOUT_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers"):
            raise ModuleNotFoundError(f"{{name}} is not installed here", name=name)

sys.meta_path.insert(0, Refuse())
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in ("torch", "transformers") else find(name, *rest)
from wrinklefree.cli.main import main
sys.exit(main({words!r}))
"""


@pytest.fixture(scope="module")
def source() -> ModelParts:
    return toy_parts(toy_config("llama"), "row")


@pytest.fixture(scope="module")
def ternary(source: ModelParts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_foreign(tmp_path_factory.mktemp("gguf") / "model.gguf", source, "TQ1_0")


def imported(capsys: pytest.CaptureFixture[str], words: list[str]) -> dict[str, Any]:
    assert main(["import", *words, "--json", "-"]) == 0
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


def check_codes(directory: Path, source: ModelParts) -> None:
    written = {part.name: part for part in packed_parts(directory).parts}
    for part in source.parts:
        if isinstance(part, TernaryPart):
            other = written[part.name]
            assert isinstance(other, TernaryPart)
            for ours, theirs in zip(part.codes_and_scales(), other.codes_and_scales(), strict=True):
                assert (ours == theirs).all(), part.name


def test_packed_is_exact_and_verified(
    ternary: Path, source: ModelParts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = imported(capsys, [str(ternary), str(tmp_path / "packed"), "--threads", "1"])
    check_codes(tmp_path / "packed", source)
    assert report["granularity"] == "row" and report["reread"]["layers"] == 7
    assert report["tables"] == [
        {"name": "model.embed_tokens", "source_type": "F16", "written": "f16", "largest": 0.0, "relative": 0.0}
    ]
    assert report["agreement"]["logit_cosine_min"] > 0.999 and report["text"]
    assert main(["generate", str(tmp_path / "packed"), "--prompt", "the", "--max-tokens", "3", "--threads", "1"]) == 0


def test_what_is_rounded_is_said(ternary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(ternary), str(tmp_path / "packed"), "--embedding", "q8", "--bits", "1.6", "--no-verify"]
    table = imported(capsys, words)["tables"][0]
    assert table["written"] == "q8" and 0 < table["relative"] < 0.01 and table["largest"] > 0


def test_torch_is_not_needed(ternary: Path, source: ModelParts, tmp_path: Path) -> None:
    words = ["import", str(ternary), str(tmp_path / "packed"), "--threads", "1"]
    program = _WITHOUT_TORCH.format(words=words)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "torch and transformers are not installed" in done.stdout
    check_codes(tmp_path / "packed", source)


def test_what_was_written_wrongly_never_gets_its_name(
    ternary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from wrinklefree.export import import_packed

    def write_another(directory: Path, model: ModelParts, tables: Any) -> Any:
        other = toy_parts(toy_config("llama"), "row", seed=1)
        return write_packed(directory, replace(model, parts=other.parts), tables)

    monkeypatch.setattr(import_packed, "write_packed", write_another)
    assert main(["import", str(ternary), str(tmp_path / "packed")]) == 1
    assert "q_proj: the codes or scales that were written are not the source's" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_ternary_file_is_measured_by_the_engine_and_never_converted(
    ternary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the " * 100)
    assert main(["eval", str(ternary), "--perplexity", str(text), "--window", "32", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["runs_on"] == "engine"
    assert main(["convert", str(ternary), str(tmp_path / "checkpoint"), "--calibration", "none"]) == 2
    assert "is ternary already" in capsys.readouterr().err


def test_a_checkpoint_of_it_exports_the_same_codes(
    source: ModelParts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grouped = toy_parts(toy_config("llama"), "group", "identity")
    path = write_foreign(
        tmp_path / "model.gguf", grouped, "TQ2_0", Changes(keys={"wrinklefree.origin": _origin("identity")})
    )
    assert imported(capsys, [str(path), str(tmp_path / "checkpoint"), "--to", "checkpoint"])["layers"] == 7
    words = ["export", str(tmp_path / "checkpoint"), str(tmp_path / "packed"), "--embedding", "f16", "--no-verify"]
    assert main(words) == 0
    check_codes(tmp_path / "packed", grouped)


def _origin(subln: str) -> str:
    return json.dumps({"origin_version": 1, "stage": "stage2", "subln": subln})


def test_a_file_that_is_not_ternary_becomes_a_plain_directory(
    source: ModelParts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    # Rounding ternary values to Q4_0 is no longer ternary: its largest value is -8, whose counterpart 8 does not exist.
    path = write_foreign(tmp_path / "model.gguf", source, "Q4_0")
    assert main(["import", str(path), str(tmp_path / "packed")]) == 2
    error = capsys.readouterr().err
    assert "blk.0.attn_q.weight (Q4_0)" in error and "--to hf" in error and len(error.splitlines()) == 1
    assert not (tmp_path / "packed").exists()
    imported(capsys, [str(path), str(tmp_path / "plain"), "--to", "hf"])
    part = next(part for part in source.parts if part.name.endswith("v_proj"))
    assert isinstance(part, TernaryPart)
    codes, scales = part.codes_and_scales()
    kind = GGMLQuantizationType.Q4_0
    wanted = dequantize(quantize(codes * scales[:, None], kind), kind)
    found = SafetensorsFile(tmp_path / "plain" / WEIGHTS).array("model.layers.0.self_attn.v_proj.weight")
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["nothing.gguf", "out"], "found no such model"),
        (["{file}", "out", "--to", "gguf"], "unknown target 'gguf'"),
        (["{file}", "out", "--embedding", "q5"], "unknown embedding precision 'q5'"),
        (["{file}", "out", "--bits", "3"], "unknown bits of a ternary weight '3'"),
        (["{file}", "out", "--to", "hf", "--embedding", "q8"], "belong to --to packed"),
        (["{file}", "{file}"], "exists already"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str],
    why: str,
    ternary: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["import", *(word.format(file=ternary) for word in words)]) == 2
    printed = capsys.readouterr()
    assert why in printed.err and len(printed.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
