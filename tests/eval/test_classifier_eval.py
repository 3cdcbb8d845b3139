"""`wf eval CLASSIFIER --labelled`: what recipes made is measured as training measured it; foreign classifiers too."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

from recipe_toys import SMALL
from task_toys import write_tasks

from wrinklefree.cli.main import main
from wrinklefree.errors import InputError
from wrinklefree.eval.classifier import evaluate_classifier, labelled_text
from wrinklefree.models.plain import export_plain
from wrinklefree.train.compose import compose
from wrinklefree.train.stage import train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def learn(directory: Path, out: str, recipe: str, *more: str) -> Path:
    small = [each for each in SMALL if not each.startswith(("budget.max_steps", "batch", "data.sequence"))]
    words = [f"training={recipe}", f"model={directory / 'model'}", f"data={directory / 'classes.jsonl'}", *small]
    words += ["optimizer.lr=3e-3", "batch.micro_batch=8", "batch.accumulation=1", "data.sequence_length=24"]
    train(compose([*words, f"task.held_out={directory / 'held.jsonl'}", *more]), out=directory / out)
    return directory / out


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier in full precision, its ternary student, and 20 held-out examples."""
    directory = write_tasks(tmp_path_factory.mktemp("classifiers"))
    lines = (directory / "classes.jsonl").read_text(encoding="utf-8").split("\n")
    (directory / "held.jsonl").write_text("\n".join(lines[::6]), encoding="utf-8")
    learn(directory, "teacher", "teacher_finetune", "budget.max_steps=25")
    taught = f"model.teacher={directory / 'teacher'}"
    learn(directory, "student", "bitdistill", "budget.max_steps=6", taught, "model.subln=none")
    return directory


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_it_measures_what_training_measured(name: str, toy: Path) -> None:
    found = evaluate_classifier(str(toy / name), labelled_text(str(toy / "held.jsonl")))
    trained = json.loads((toy / name / "held_out.json").read_text(encoding="utf-8"))
    assert found.found.examples == trained["examples"] == 20 and found.classes == ("high", "low")
    assert found.found.accuracy == pytest.approx(trained["accuracy"])
    assert found.found.loss == pytest.approx(trained["loss"], rel=1e-4)


def test_the_command_compares_with_a_teacher_and_says_where_it_was_measured(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    words = [str(toy / "student"), "--labelled", str(toy / "held.jsonl"), "--teacher", str(toy / "teacher")]
    assert main(["eval", *words, "--window", "5", "--json", str(out)]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    ours, theirs, alike = found["classification"], found["teacher"], found["agreement"]
    difference = (ours["accuracy"] - theirs["accuracy"]) * 20
    assert difference == pytest.approx(alike["only_model"] - alike["only_teacher"])
    assert found["labelled"]["window"] == 5 and found["labelled"]["truncated"] == 20
    assert found["provenance"]["machine"]["cores"] and found["labelled"]["name"] == str(toy / "held.jsonl")
    assert found["figures"][0]["value"] == ours["accuracy"] and found["sha256"] and found["how"]["device"] == "cpu"
    assert "20 texts lost what is beyond 5 tokens" in capsys.readouterr().out


def test_an_exported_plain_directory_is_measured_too(toy: Path, tmp_path: Path) -> None:
    """Without rounded activations, so its figures are near and not equal."""
    export_plain(toy / "student", tmp_path / "plain")
    text = labelled_text(str(toy / "held.jsonl"))
    plain, ours = (evaluate_classifier(str(path), text) for path in (tmp_path / "plain", toy / "student"))
    assert plain.found.loss == pytest.approx(ours.found.loss, rel=0.2) and plain.found.loss != ours.found.loss


def test_classes_by_name_by_number_and_in_another_order(toy: Path, tmp_path: Path) -> None:
    """A named data set's numbers go by its names; a config that names no class counts alike."""
    records = [json.loads(line) for line in (toy / "held.jsonl").read_text(encoding="utf-8").split("\n")]
    numbered = [{"sentence": r["text"], "gold": 0 if r["label"] == "low" else 1} for r in records]
    (tmp_path / "n.jsonl").write_text("\n".join(map(json.dumps, numbered)), encoding="utf-8")
    fields = ["text=sentence", "label=gold", "labels=[low,high]"]
    by_name = evaluate_classifier(str(toy / "teacher"), labelled_text(str(toy / "held.jsonl")))
    by_number = evaluate_classifier(str(toy / "teacher"), labelled_text(str(tmp_path / "n.jsonl"), fields))
    assert by_number.found == by_name.found and by_name.found.confusion[0][0] > 0
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for path in (toy / "teacher").iterdir():
        if path.is_file():
            (foreign / path.name).write_bytes(path.read_bytes())
    config: dict[str, Any] = json.loads((foreign / "config.json").read_text(encoding="utf-8"))
    config |= {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    (foreign / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = load_file(foreign / "model.safetensors")
    tensors["score.weight"] = tensors["score.weight"].flip(0).contiguous()
    save_file(tensors, foreign / "model.safetensors", metadata={"format": "pt"})
    flipped = evaluate_classifier(str(foreign), labelled_text(str(tmp_path / "n.jsonl"), fields))
    assert flipped.found.accuracy == by_name.found.accuracy
    assert np.array_equal(np.array(flipped.found.confusion), np.array(by_name.found.confusion)[::-1, ::-1])


def test_what_cannot_be_measured_is_refused_in_words(toy: Path, tmp_path: Path) -> None:
    text = labelled_text(str(toy / "held.jsonl"))
    with pytest.raises(InputError, match="is no classifier; --labelled measures"):
        evaluate_classifier(str(toy / "model"), text)
    with pytest.raises(InputError, match="window 3: at least 4 tokens"):
        evaluate_classifier(str(toy / "teacher"), text, window=3)
    other = labelled_text(str(toy / "held.jsonl"), ["labels=[high,low,middle]"])
    with pytest.raises(InputError, match=r"is a classifier for \['high', 'low'\]"):
        evaluate_classifier(str(toy / "teacher"), other)
    with pytest.raises(InputError, match="no such file"):
        labelled_text("nothing.jsonl")
    with pytest.raises(InputError, match="found task"):
        labelled_text(str(toy / "held.jsonl"), ["problem=regression"])
    with pytest.raises(InputError, match="did you mean 'label'"):
        labelled_text(str(toy / "held.jsonl"), ["label=lable"])
