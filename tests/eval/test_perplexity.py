"""`perplexity` on toy models written here: a checkpoint, its packed export in the engine, and a plain model agree."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizer_toys
from toy_checkpoints import model as toy_model
from toy_checkpoints import write as write_checkpoint
from transformers import PreTrainedTokenizerFast

from wrinklefree.engine import Engine
from wrinklefree.errors import InputError
from wrinklefree.eval.loss import engine_logits, held_out_loss, torch_logits
from wrinklefree.eval.opening import open_scorer
from wrinklefree.eval.perplexity import perplexity
from wrinklefree.eval.text import evaluation_documents, evaluation_text
from wrinklefree.eval.torch_scorer import TorchScorer
from wrinklefree.export.export import export
from wrinklefree.models.io import load_checkpoint
from wrinklefree.quant.bitlinear import full_strength, quant_strength

pytest.importorskip("wrinklefree._native", reason="the engine is not built")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths: a checkpoint, its packed export, a plain model, and a text."""
    root = tmp_path_factory.mktemp("models")
    checkpoint = write_checkpoint(root / "checkpoint")
    export(checkpoint, root / "packed", verify=False)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_toys.write(root / "tokenizer"))
    toy_model().save_pretrained(root / "plain")
    tokenizer.save_pretrained(root / "plain")
    (root / "text.txt").write_text("Some text to be scored, twice. Straße.\n" * 12, encoding="utf-8")
    return {name: str(root / name) for name in ("checkpoint", "packed", "plain", "text.txt")}


def test_engine_and_torch_agree(models: dict[str, str]) -> None:
    torch_report = perplexity(models["checkpoint"], models["text.txt"], window=64)
    engine_report = perplexity(models["packed"], models["text.txt"], window=64, threads=1)
    assert (torch_report.runs_on, engine_report.runs_on) == ("torch", "engine")
    assert torch_report.loss.tokens == engine_report.loss.tokens > 100
    # What the engine differs by: int8 embeddings (half a part in 127) and a float16 cache.
    assert engine_report.loss.loss == pytest.approx(torch_report.loss.loss, rel=0.01)


def test_engine_pieces_are_the_engines_logits(models: dict[str, str]) -> None:
    engine = Engine.load(models["packed"], threads=1)
    text = evaluation_text(evaluation_documents(models["text.txt"]), engine.tokenizer.encode, 200, 150)
    assert held_out_loss(engine_logits(engine), text).loss == pytest.approx(
        held_out_loss(lambda ids: engine.logits(ids.tolist()), text).loss, rel=1e-12
    )


def test_checkpoints_are_measured_at_full_strength(models: dict[str, str]) -> None:
    with open_scorer(models["checkpoint"]) as opened:
        assert opened.context == 256
    loaded = load_checkpoint(models["checkpoint"])[0]
    quant_strength(loaded).value = 0.25
    text = evaluation_text(evaluation_documents(models["text.txt"]), list_bytes, 64)
    weak = held_out_loss(torch_logits(loaded), text).loss
    with full_strength(loaded):
        full = held_out_loss(torch_logits(loaded), text).loss
    assert weak != full and quant_strength(loaded).value == 0.25


def list_bytes(text: str) -> list[int]:
    return list(text.encode())


def test_teacher_and_json(models: dict[str, str]) -> None:
    calls: list[tuple[int, int]] = []
    report = perplexity(
        models["checkpoint"],
        models["text.txt"],
        window=64,
        limit_tokens=130,
        teacher=models["plain"],
        on_window=lambda done, of: calls.append((done, of)),
    )
    assert report.teacher is not None and report.agreement is not None
    assert report.agreement.kl > 0 and report.teacher.loss != report.loss.loss
    assert calls == [(1, 2), (2, 2)] * 3
    found = json.loads(json.dumps(report.to_json()))
    assert {"model", "runs_on", "loss", "perplexity", "bits_per_byte", "tokens", "window", "stride"} <= found.keys()
    assert found["agreement"]["tokens"] == found["tokens"]
    itself = perplexity(models["plain"], models["text.txt"], window=64, teacher=models["plain"])
    assert itself.agreement is not None and itself.agreement.kl == 0.0


def test_window_longer_than_the_context(models: dict[str, str]) -> None:
    for kind in ("checkpoint", "packed"):
        with pytest.raises(InputError, match="context of 256 tokens"):
            perplexity(models[kind], models["text.txt"], window=300)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "found no text"), (b" \n", "found no text"), (b"ok\xff", "not UTF-8 at offset 2"), (None, "no such file")],
)
def test_bad_texts(models: dict[str, str], tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        perplexity(models["packed"], str(path))
    assert "\n" not in str(caught.value)


def test_bad_models(models: dict[str, str], tmp_path: Path) -> None:
    for missing in (tmp_path / "nothing", tmp_path):
        with pytest.raises(InputError):
            perplexity(str(missing), models["text.txt"])


def test_other_tokenizer_cannot_teach(models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = TorchScorer.encode
    monkeypatch.setattr(TorchScorer, "encode", lambda scorer, text: real(scorer, text)[::-1])
    with pytest.raises(InputError, match="splits the text differently"):
        perplexity(models["packed"], models["text.txt"], window=64, threads=1, teacher=models["plain"])


def test_a_packed_model_needs_no_torch(models: dict[str, str]) -> None:
    program = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        "from wrinklefree.eval.perplexity import perplexity\n"
        f"print(perplexity({models['packed']!r}, {models['text.txt']!r}, window=64, threads=1).loss.tokens)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100
