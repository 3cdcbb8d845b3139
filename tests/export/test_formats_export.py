"""The flow that all formats share: which sources, which options, what is left when it fails. Toys of two layers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import toy_checkpoints as toys

from wrinklefree.artifact.sgl_bin import bin_parts
from wrinklefree.cli.main import main
from wrinklefree.errors import InputError, VerificationError
from wrinklefree.export.export import export
from wrinklefree.export.formats import FORMATS, ExportOptions
from wrinklefree.export.source import open_source
from wrinklefree.export.written import check_parts
from wrinklefree.quant.ternary import TernarySpec

TENSOR = TernarySpec("tensor")


@pytest.mark.parametrize("format", ["hf", "hf-plain", "bin"])
def test_formats_beside_gguf_are_verified_too(tmp_path: Path, format: str) -> None:
    """From a checkpoint and from the packed directory of it: the same bytes, codes equal, the engine agrees."""
    source = toys.write(tmp_path / "src", spec=TENSOR)
    export(source, tmp_path / "packed", verify=False, embedding="f16")
    first = export(source, tmp_path / "a.out", format, threads=1, greedy_tokens=8)
    second = export(tmp_path / "packed", tmp_path / "b.out", format, threads=1, greedy_tokens=8)
    for report in (first, second):
        assert not report.lossy
        if format == "hf-plain":
            assert report.tensors_equal == 20 and report.codes is None
        else:
            assert report.codes is not None and report.codes.layers == 14
    if format != "hf-plain":
        assert first.agreement is not None and first.agreement.passed
        assert second.engines is not None and second.engines.logit_cosine_min > 0.999
    with pytest.raises(InputError, match="exists already"):
        export(source, tmp_path / "a.out", format)


def test_every_format_says_what_it_is_for() -> None:
    assert list(FORMATS) == ["packed", "gguf-tq1_0", "gguf-tq2_0", "gguf-i2_s", "hf", "hf-plain", "bin"]
    for name, entry in FORMATS.items():
        assert entry.about and entry.embeddings and (entry.read is None) == (name == "hf-plain")
        assert entry.is_file == (name.startswith("gguf") or name == "bin")


def test_a_wrong_scale_or_code_of_any_format_is_found(tmp_path: Path) -> None:
    """`check_parts` against a file of another seed, and against one with another embedding."""
    parts = [open_source(toys.write(tmp_path / f"{seed}", seed=seed, spec=TENSOR), "bin").parts for seed in (0, 1)]
    for number, model in enumerate(parts):
        plan = FORMATS["bin"].plan(model, ExportOptions("exact"))
        plan.write(tmp_path / f"{number}.bin")
        check_parts(plan.written, bin_parts(tmp_path / f"{number}.bin"))
    with pytest.raises(VerificationError, match=r"not what the source's became|not the source's"):
        check_parts(FORMATS["bin"].plan(parts[0], ExportOptions("exact")).written, bin_parts(tmp_path / "1.bin"))


@pytest.mark.slow
def test_no_space_for_a_gguf_file_leaves_nothing(tmp_path: Path) -> None:
    """The operating system refuses the file's size, in a process of its own."""
    source = toys.write(tmp_path / "src", spec=TENSOR)
    program = f"""
import resource
from wrinklefree.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (16384, {2**40}))
raise SystemExit(main(["export", {str(source)!r}, {str(tmp_path / "out.gguf")!r}, "--format", "gguf-tq2_0"]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert "no space left" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src", "src-tokenizer"]


def test_a_verification_that_fails_is_exit_1_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from wrinklefree.export import gguf as module

    real = module.encode
    monkeypatch.setattr(module, "encode", lambda kind, codes, scales: real(kind, -codes, scales))
    source = toys.write(tmp_path / "src", spec=TENSOR)
    assert main(["export", str(source), str(tmp_path / "out.gguf"), "--format", "gguf-tq1_0", "--threads", "1"]) == 1
    assert "the file's codes are not the source's" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src", "src-tokenizer"]
