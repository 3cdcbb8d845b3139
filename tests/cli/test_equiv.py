"""`wf equiv` on toys: exit codes, figures, refusals. What equivalence means is tested in tests/eval."""

from __future__ import annotations

import json

import pytest
import tokenizer_toys
import toy_checkpoints

from wrinklefree.cli.main import main


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A Hugging Face model, one with another seed, a checkpoint, and a text."""
    root = tmp_path_factory.mktemp("equiv")
    for name, seed in (("one", 0), ("other", 1)):
        toy_checkpoints.model(seed=seed).save_pretrained(root / name)
        tokenizer_toys.write(root / name)
    toy_checkpoints.write(root / "checkpoint")
    (root / "text.txt").write_text("Some words to compare on, over and over. " * 30, encoding="utf-8")
    return {name: str(root / name) for name in ("one", "other", "checkpoint", "text.txt")}


def words(models: dict[str, str], *more: str) -> list[str]:
    return ["equiv", *more, "--text", models["text.txt"], "--window", "32", "--tokens", "96", "--threads", "1"]


def test_one_model_in_two_modes_is_the_same(models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    given = words(models, models["checkpoint"], "--mode-b", "eager", "--gradients", "--steps", "2", "--json", "-")
    assert main(given) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["same"] and found["mode_b"] == "eager" and found["model_b"] == models["checkpoint"]
    assert found["gradients"]["cosine"] > 0.9999 and found["training"]["steps"] == 2
    assert 64 <= found["logits"]["positions"] <= 128


def test_other_weights_are_different_and_the_bound_is_the_users(
    models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(models, models["one"], models["other"])) == 1
    assert "DIFFERENT: logits" in capsys.readouterr().out
    assert main(words(models, models["one"], models["other"], "--min-cosine", "-1")) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "the same model in the same mode"),
        (["--mode-b", "egaer"], "did you mean 'eager'"),
        (["--mode-b", "eager", "--min-cosine", "2"], "a cosine is from -1 to 1"),
        (["no/such/model/at/all"], "no such model"),
    ],
)
def test_wrong_inputs_are_refused(
    models: dict[str, str], more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(models, models["one"], *more)) == 2
    assert message in capsys.readouterr().err
