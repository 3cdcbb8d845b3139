"""The figures of experiments/smollm2-135m on toys: the text is the same for every model, figures are those of
`wrinklefree.eval`, nothing is made twice, and what changed is made again.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "artifact"))
sys.path.append(str(Path(__file__).parents[1] / "export"))
import toy_checkpoints
from smollm2_toys import modules

from wrinklefree.errors import InputError, MissingDependencyError
from wrinklefree.eval.opening import open_scorer
from wrinklefree.eval.perplexity import compare
from wrinklefree.export.export import export
from wrinklefree.models.mask_token import DiffusionMarker

pytest.importorskip("wrinklefree._native", reason="the engine is not built")


@pytest.fixture(scope="module")
def measure() -> Iterator[ModuleType]:
    with modules("measure") as found:
        yield found["measure"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("work")
    toy_checkpoints.write(work / "teacher", seed=1)
    for name in ("distilled", "blocks"):
        path = toy_checkpoints.write(work / name) / "config.json"
        if name == "blocks":
            config = json.loads(path.read_text())
            config["wrinklefree"]["dlm"] = DiffusionMarker(200, 16, True, "fast_dllm", "block_causal").to_json()
            path.write_text(json.dumps(config))
        export(work / name, work / f"packed-{name}", threads=1, verify=False)
    (work / "corpus").mkdir()
    random = np.random.default_rng(0)
    for kind in ("docs", "novel"):
        texts = ["".join(map(chr, random.integers(97, 123, size))) for size in (70, 9, 1, 40)]
        lines = [json.dumps({"text": text}) for text in texts]
        (work / "corpus" / f"held-{kind}.jsonl").write_text("\n".join(lines) + "\n")
    return work


def measurement(measure: ModuleType, work: Path, said: list[str], **changes: Any) -> Any:
    sizes = {"tokens": 60, "torch_tokens": 40, "agreement_tokens": 40, "bound_tokens": 30, "answer_tokens": 6,
             "documents": 3, "speed": measure.SpeedSizes(1, 8, 1, 2, 256), "window": 32, "agreement_window": 24,
             "samples": 2}  # fmt: skip
    store = measure.FigureStore(work / "figures", said.append)
    models = measure.found_models(work, [])
    return measure.Measurement(
        work / "corpus", work / "teacher", models, "blocks", measure.Sizes(**{**sizes, **changes}), store, 1
    )  # fmt: skip


def value(work: Path, name: str) -> Any:
    return json.loads((work / "figures" / f"{name}.json").read_text())["value"]


def test_windows_go_through_the_documents_in_turn_and_stop_at_enough(measure: ModuleType, work: Path) -> None:
    text = measure.held_text(work / "corpus", "docs", lambda text: list(text.encode()), 60, 32)
    assert [len(window.tokens) for window in text.windows] == [32, 9, 32]  # one token alone is no window
    assert text.documents.tolist() == [0, 1, 2] and text.counts == [31, 8, 31]
    assert text.num_bytes == text.num_tokens == 70 + 9 + 40
    more = measure.held_text(work / "corpus", "docs", lambda text: list(text.encode()), 10_000, 32)
    assert [len(window.tokens) for window in more.windows] == [32, 9, 32, 32, 8, 6]
    assert more.documents.tolist() == [0, 1, 2, 0, 2, 0] and more.sha256 != text.sha256
    assert b"".join(w.tokens.astype(np.uint8).tobytes() for w in more.of(2).windows).decode() == more.texts[2]


def test_figures_are_those_of_eval_and_are_made_once(measure: ModuleType, work: Path) -> None:
    said: list[str] = []
    measured = measurement(measure, work, said)
    groups = ("loss", "torch", "agreement", "bound")
    measured.run(groups)
    assert {name for name in said if name.startswith("bound")} == {"bound-blocks-docs", "bound-blocks-novel"}
    assert len(said) == len(set(said)) == 3 * 2 + 2 * 2 + 2 * 2 + 2

    ours, theirs = value(work, "loss-blocks-docs"), value(work, "loss-teacher-docs")
    text = measured.text("docs", 60)
    with open_scorer(str(work / "packed-blocks"), 1) as scorer, open_scorer(str(work / "teacher"), 1) as teacher:
        each = [float(scores.losses.sum()) for scores in scorer.score(text.requests)]
        small = measured.text("docs", 40, 24)
        alike = compare(teacher, scorer, small.of(), None)
    assert ours["sums"] == pytest.approx(each) and ours["loss"] == pytest.approx(sum(each) / sum(text.counts))
    assert ours["counts"] == theirs["counts"] == text.counts and theirs["loss"] != ours["loss"]
    assert ours["bits_per_byte"] == pytest.approx(ours["loss"] / math.log(2))  # a byte is a token here
    found = value(work, "agreement-blocks-docs")
    assert found["kl"] == pytest.approx(alike.kl) and found["top1"] == pytest.approx(alike.top1)
    assert found["documents"] == len(small.texts) and found["kl_error"] > 0.0
    by_engine, by_torch = value(work, "engine-blocks-docs"), value(work, "torch-blocks-docs")
    assert (by_engine["runs_on"], by_torch["runs_on"]) == ("engine", "torch")
    assert by_engine["loss"] == pytest.approx(by_torch["loss"], rel=1e-2) and by_engine["counts"] == by_torch["counts"]

    said.clear()
    measurement(measure, work, said).run(groups)
    assert said == []
    measurement(measure, work, said, samples=3).run(groups)
    assert said == ["bound-blocks-docs", "bound-blocks-novel"]


def test_what_changed_is_made_again_and_a_model_of_other_tokens_is_refused(
    measure: ModuleType, work: Path, tmp_path: Path
) -> None:
    store = measure.FigureStore(tmp_path, (said := []).append)
    made = [store.once("a", {"model": "x", "sizes": (1, 2)}, lambda n=n: {"n": n}) for n in (1, 2)]
    assert made == [{"n": 1}, {"n": 1}] and store.once("a", {"model": "y"}, lambda: {"n": 3}) == {"n": 3}
    assert said == ["a", "a"] and json.loads((tmp_path / "a.json").read_text())["provenance"]["machine"]["cores"]
    assert measure.model_hash(work / "distilled") != measure.model_hash(work / "packed-distilled")

    measured = measurement(measure, work, said)
    text = measured.text("docs", 60)
    with open_scorer(str(work / "teacher"), 1) as scorer:
        scorer.encode = lambda text: [3, *text.encode()]  # type: ignore[method-assign]
        with pytest.raises(SystemExit, match="splits held-out docs differently"):
            measured._checked(text, lambda scorer, text: None)(scorer)


def test_answers_stand_beside_each_other_and_say_where_they_were_cut(measure: ModuleType, work: Path) -> None:
    measured = measurement(measure, work, [])
    measured.run(["answers"])
    found = value(work, "answers-blocks")
    assert [each["text"] for each in found] == [each["text"] for each in measure.answers.prompts()] and len(found) == 20
    page = (work / "figures" / "answers.md").read_text()
    assert page.count("| teacher | ternary (blocks) |") == 20

    teacher = [{"kind": "code", "text": "a|b?", "answer": "x = 1\n  y | <b>", "cut": True}]
    student = [{"kind": "code", "text": "a|b?", "answer": " ", "cut": False}]
    page = measure.answers.side_by_side(teacher, student, ("t", "s"))
    assert page.splitlines()[-1] == "| x = 1<br>&nbsp;&nbsp;y &#124; &lt;b&gt; **[…]** | (nothing) |"
    with pytest.raises(ValueError, match="different prompts"):
        measure.answers.side_by_side(teacher, [{**student[0], "text": "b"}], ("t", "s"))


def test_tasks_that_cannot_be_run_here_are_named_with_the_reason(
    measure: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = pytest.importorskip("wrinklefree.eval.tasks.catalog", reason="needs wrinklefree[eval]")
    refused = {"avg-5": InputError("no data"), "movie_reviews": MissingDependencyError("no package")}

    def load(words: list[str]) -> None:
        if words[0] in refused:
            raise refused[words[0]]

    monkeypatch.setattr(catalog, "load_tasks", load)
    had, missing = measure.task_figures.loadable()
    assert had == ["exact_choice", "avg-8"] and missing["avg-5"]["tasks"][0] == "piqa"
    assert "data" in missing["avg-5"]["why"] and "package" in missing["movie_reviews"]["why"]


def test_a_model_is_packed_where_no_stage_did_it_and_mistakes_are_named(
    measure: ModuleType, work: Path, tmp_path: Path
) -> None:
    found = measure.found_models(work, [])
    assert [(model.name, model.path.name) for model in found] == [
        ("distilled", "packed-distilled"), ("blocks", "packed-blocks")
    ]  # fmt: skip
    with pytest.raises(SystemExit, match="none of calibrated-row"):
        measure.found_models(tmp_path, [])
    with pytest.raises(SystemExit, match="--model x=nowhere"):
        measure.found_models(tmp_path, ["x=nowhere"])


@pytest.mark.slow
def test_the_command_makes_speed_and_tasks_too_and_packs_checkpoints(measure: ModuleType, work: Path) -> None:
    """What the default run leaves out: the benchmark's own process, the tasks, and packing."""
    (alone := work / "alone").mkdir()
    (alone / "distilled").symlink_to(work / "distilled")
    (model,) = measure.found_models(alone, [])
    assert model.path.parent == alone / "figures" / "packed" and model.checkpoint == alone / "distilled"
    said: list[str] = []
    measurement(measure, work, said).run(["speed", "tasks"])
    assert said == ["speed-1-threads", "tasks-teacher", "tasks-blocks"]
    ways = {way["name"]: way for way in value(work, "speed-1-threads")["ways"]}
    assert ways["ar"]["like_ar"]["equal"] == 1.0 and "teacher_loss" in ways["block n=2"]["quality"]
    assert "exact_choice" in value(work, "tasks-blocks")["results"]
