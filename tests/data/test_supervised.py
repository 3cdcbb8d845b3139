"""Labelled examples: rows against the texts they come from, truncation against its rules, order, resume, messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from wrinklefree.data.batch import IGNORE_INDEX
from wrinklefree.data.document import SourceConfig
from wrinklefree.data.supervised import ClassBatch, SupervisedData, TaskConfig, build_supervised
from wrinklefree.data.tokens import TextEncoder
from wrinklefree.errors import InputError

EOS, BOS = 1, 2
# A letter is its code; every text opens with BOS.
ENCODER = TextEncoder(lambda text: [BOS, *text.encode()], EOS)


def write(path: Path, records: list[Any]) -> SourceConfig:
    lines = (record if isinstance(record, str) else json.dumps(record) for record in records)
    path.write_text("\n".join(lines), encoding="utf-8")
    return SourceConfig(kind="jsonl", path=str(path))


def build(tmp_path: Path, records: list[Any], length: int = 16, share: float = 0.0, **task: Any) -> SupervisedData:
    config = TaskConfig(**{"kind": "classification", **task})
    return build_supervised(config, write(tmp_path / "x.jsonl", records), ENCODER, length, 0, share, 0)


def pairs(count: int) -> list[dict[str, Any]]:
    return [{"text": f"text {i}", "label": "even" if i % 2 == 0 else "odd"} for i in range(count)]


def texts(data: SupervisedData, examples: Any = None) -> set[bytes]:
    return {bytes(ids[1:].tolist()) for ids in (examples or data.stream.examples).ids}


def test_a_row_is_bos_and_text_without_end_token_and_predicts_no_token(tmp_path: Path) -> None:
    data = build(tmp_path, [{"text": "yes!", "label": "b"}, {"text": "no", "label": "a"}], 8)
    batch = data.stream.examples.batch([0, 1])
    assert isinstance(batch, ClassBatch) and batch.classes is not None and data.labels == ("a", "b")
    assert batch.input_ids.tolist() == [[BOS, *b"yes!", 0, 0, 0], [BOS, *b"no", 0, 0, 0, 0, 0]]
    assert batch.document_ids.tolist() == [[0] * 5 + [-1] * 3, [0] * 3 + [-1] * 5]
    assert batch.position_ids.tolist()[0] == [0, 1, 2, 3, 4, 0, 0, 0]
    assert batch.classes.tolist() == [1, 0] and batch.num_targets == 0
    part = batch.rows(1, 2)
    assert isinstance(part, ClassBatch) and part.classes is not None and part.classes.tolist() == [0]
    moved = batch.to("cpu")
    assert isinstance(moved, ClassBatch) and moved.classes is not None


def test_only_the_completion_and_the_end_token_are_predicted(tmp_path: Path) -> None:
    data = build(tmp_path, [{"prompt": "2+2=", "completion": "four"}], 16, kind="completion")
    batch = data.stream.examples.batch([0])
    assert batch.input_ids[0].tolist() == [BOS, *b"2+2=", *b"four", EOS] + [0] * 6
    assert batch.labels[0].tolist() == [IGNORE_INDEX] * 5 + [*b"four", EOS] + [IGNORE_INDEX] * 6
    assert type(batch).__name__ == "TokenBatch" and data.labels == ()


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("aaa", "bbb", b"aaa|bbb"),
        ("aaaaaaaaaaaa", "bb", b"aaaaaaaa|bb"),  # the longer one loses its end
        ("aa", "bbbbbbbbbbbb", b"aa|bbbbbbbb"),
        ("aaaaaaaaaaaa", "bbbbbbbbbbbb", b"aaaaa|bbbbb"),
    ],
)
def test_of_two_texts_the_longer_one_loses_its_end(first: str, second: str, expected: bytes, tmp_path: Path) -> None:
    records = [{"text": first, "b": second, "label": 0}, {"text": "x", "b": "y", "label": 1}]
    data = build(tmp_path, records, 12, text_pair="b", join="|")
    assert bytes(data.stream.examples.ids[0][1:].tolist()) == expected
    assert data.stream.examples.truncated == (len(first) + len(second) > 10)


def test_a_long_text_loses_its_end(tmp_path: Path) -> None:
    data = build(tmp_path, [{"text": "abcdefghij", "label": 0}, {"text": "abcd", "label": 1}], 5)
    assert [ids.tolist() for ids in data.stream.examples.ids] == [[BOS, *b"abcd"]] * 2
    assert data.stream.examples.truncated == 1


@pytest.mark.parametrize(
    ("prompt", "completion", "ids", "scored"),
    [
        ("abcdefghijklmn", "xyz", [BOS, *b"abc", *b"klmn", *b"xyz", EOS], 8),  # the prompt loses its middle
        ("abc", "0123456789", [BOS, *b"abc", *b"01234567"], 4),  # the completion loses its end, and the end token
        ("abcdefghij", "0123456789", [BOS, *b"ab", *b"hij", *b"012345"], 6),  # half for each
        ("abc", "0123456", [BOS, *b"abc", *b"0123456", EOS], 4),  # fits exactly
    ],
)
def test_prompt_and_completion_share_the_row(
    prompt: str, completion: str, ids: list[int], scored: int, tmp_path: Path
) -> None:
    data = build(tmp_path, [{"prompt": prompt, "completion": completion}], 12, kind="completion")
    assert data.stream.examples.ids[0].tolist() == ids and data.stream.examples.scored == (scored,)


def test_every_epoch_has_every_example_once_in_another_order_and_any_batch_size_sees_the_same(tmp_path: Path) -> None:
    stream = build(tmp_path, pairs(23)).stream
    epochs = [[stream.locate(k) for k in range(e * 23, e * 23 + 23)] for e in range(3)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != list(range(23))
    whole, parts = stream.batch(5, 30), [stream.batch(5 + i, 10) for i in (0, 10, 20)]
    assert torch.equal(whole.input_ids, torch.cat([part.input_ids for part in parts]))
    other = build(tmp_path, pairs(23)).stream
    assert torch.equal(other.batch(40, 4).input_ids, stream.batch(40, 4).input_ids)


def test_a_state_resumes_only_with_the_same_examples(tmp_path: Path) -> None:
    state = build(tmp_path, pairs(9)).stream.state_dict()
    build(tmp_path, pairs(9)).stream.load_state_dict(state)
    for changed in (pairs(10), [*pairs(8), {"text": "text 8", "label": "odd"}]):
        with pytest.raises(InputError, match="made with other examples"):
            build(tmp_path, changed).stream.load_state_dict(state)


def test_the_split_is_fixed_and_held_out_texts_are_never_trained_on(tmp_path: Path) -> None:
    records = [*pairs(40), *pairs(5)]  # five examples twice
    data, again = build(tmp_path, records, share=0.25), build(tmp_path, records, share=0.25)
    assert texts(data, data.held_out) == texts(again, again.held_out)
    assert len(data.held_out) == round(0.25 * 45)
    assert not texts(data) & texts(data, data.held_out)
    own = tmp_path / "held.jsonl"
    write(own, pairs(3))
    given = build(tmp_path, pairs(10), held_out=str(own))
    assert len(given.held_out) == 3 and len(given.stream.examples) == 7


def test_labels_are_ordered_as_given_as_numbers_or_as_text(tmp_path: Path) -> None:
    def records(labels: list[Any]) -> list[Any]:
        return [{"text": f"t{i}", "label": x} for i, x in enumerate(labels)]

    assert build(tmp_path, records([10, 9, 2, 10])).labels == ("2", "9", "10")
    assert build(tmp_path, records(["b", "a", "c"])).labels == ("a", "b", "c")
    data = build(tmp_path, records(["no", "yes"]), labels=("yes", "no", "maybe"))
    assert data.labels == ("yes", "no", "maybe")
    assert data.stream.examples.classes is not None and data.stream.examples.classes.tolist() == [1, 0]


def test_several_classes_and_numbers(tmp_path: Path) -> None:
    several = [{"text": "x", "label": ["b", "a"]}, {"text": "y", "label": []}, {"text": "z", "label": ["c"]}]
    data = build(tmp_path, several, problem="multi_label")
    assert data.labels == ("a", "b", "c") and data.stream.examples.classes is not None
    assert data.stream.examples.classes.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    data = build(tmp_path, [{"text": "x", "label": 0.5}, {"text": "y", "label": 2}], problem="regression")
    assert data.stream.examples.classes is not None and data.stream.examples.classes.tolist() == [0.5, 2.0]


@pytest.mark.parametrize(
    ("records", "task", "message"),
    [
        ([{"text": "a", "labl": 1}], {}, r"line 1: field 'label'; did you mean 'labl'"),
        ([{"text": "a", "label": 1}, {"txt": "b"}], {}, r"line 2: field 'text'; did you mean 'txt'"),
        ([{"text": 3, "label": 1}], {}, r"line 1: field 'text': found 3, a text is needed"),
        ([{"text": " ", "label": 1}], {}, "a text is needed"),
        ([{"text": "a", "label": 0.5}], {}, "a name or a whole number is needed"),
        ([{"text": "a", "label": None}], {}, "found null, a name"),
        ([{"text": "a", "label": "x"}], {"problem": "multi_label"}, "a list of names is needed"),
        ([{"text": "a", "label": "x"}], {"problem": "regression"}, "found 'x', a number is needed"),
        ([{"text": "a", "label": "x"}], {}, r"found the classes \['x'\], two or more"),
        ([{"text": "a", "label": "possitive"}], {"labels": ("positive", "negative")}, "did you mean 'positive'"),
        (["{", {"text": "a"}], {}, "line 1: not valid JSON"),
        (["[]"], {}, "found a JSON list, an object is needed"),
        ([""], {}, "found no record"),
        ([{"prompt": "a"}], {"kind": "completion"}, "field 'completion'"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(
    records: list[Any], task: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build(tmp_path, records, **task)
    assert "\n" not in str(caught.value)


def test_text_files_and_wrong_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a task needs records with fields"):
        build_supervised(TaskConfig("classification"), SourceConfig(), ENCODER, 16, 0, 0.0, 0)
    with pytest.raises(InputError, match="two or more different names"):
        TaskConfig("classification", labels=("a", "a"))
    with pytest.raises(InputError, match="because there are no classes"):
        TaskConfig("completion", labels=("a", "b"))
    with pytest.raises(InputError, match="no example is left"):
        build(tmp_path, [{"text": "same", "label": i % 2} for i in range(8)], share=0.5)
    with pytest.raises(InputError, match="single source of examples"):
        build(tmp_path, pairs(4)).stream.set_weights([1.0], 0)


def test_a_tokenizer_without_bos_and_one_that_ends_texts_itself(tmp_path: Path) -> None:
    source = write(tmp_path / "x.jsonl", [{"prompt": "ab", "completion": "cd"}])
    for encode in (lambda text: list(text.encode()), lambda text: [*text.encode(), EOS]):
        encoder = TextEncoder(encode, EOS)
        data = build_supervised(TaskConfig("completion"), source, encoder, 8, 0, 0.0, 0)
        assert data.stream.examples.ids[0].tolist() == [*b"ab", *b"cd", EOS]
