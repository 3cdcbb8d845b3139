"""The run of experiments/smollm2-135m: its texts on toys, its parcels, and all of it with a toy teacher."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from recipe_toys import write_toy
from safetensors.torch import load_file
from smollm2_toys import HERE, modules

from wrinklefree.train.compose import compose
from wrinklefree.train.session import Position
from wrinklefree.train.stage import train

sys.path.append(str(HERE.parent / "shared"))
SYSTEM = "system\na system prompt of more than eight words for all of them<|im_end|>\n<|im_start|>user\n"


@pytest.fixture(scope="module")
def the() -> Iterator[dict[str, ModuleType]]:
    with modules("mixture", "questions", "package_texts", "parcel", "pieces", "splitting") as found:
        yield found


def lines(path: Path, entries: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")


def words(name: str, count: int = 30) -> str:
    return " ".join(f"{name}{i}" for i in range(count))


def test_questions_end_stand_on_one_line_and_are_asked_once(the: dict[str, ModuleType]) -> None:
    before = f"<|im_start|>{SYSTEM}"
    said = ("What is\n tea?", "what IS tea?", "cut", "No", "<|im_end|> more", "broken \ufffd", "  ", "And why?")
    tokens = (5, 5, 40, 2, 9, 9, 9, 60)
    # The tokenizer puts the first token there again, so the text is without it; one that does not keeps it.
    entries = [{"text": SYSTEM + text, "tokens": n} for text, n in zip(said, tokens, strict=True)]
    entries.append({"text": f"{before}Who are you?", "tokens": 6})
    assert the["questions"].kept(entries, before, 40) == ["What is tea?", "Who are you?"]
    assert the["questions"].kept(entries, before, 72) == ["What is tea?", "cut", "And why?", "Who are you?"]


@pytest.fixture
def work(tmp_path: Path, the: dict[str, ModuleType]) -> Path:
    """Files of every kind: 30 documents of 30 words of their own, and stolen passages."""
    for kind, name in the["mixture"].FILES.items():
        lines(
            tmp_path / f"{name}.jsonl", [{"source": f"{kind}{i}#0", "text": words(f"{kind}x{i}x")} for i in range(30)]
        )
    return tmp_path


HELD = {"chat": 2, "continuation": 3, "docs": 4, "reviews": 4, "addresses": 4, "novel": 5, "code": 5}


def test_nothing_that_is_held_out_is_trained_on(work: Path, the: dict[str, ModuleType]) -> None:
    mixture, read, out = the["mixture"], the["splitting"].read, work / "corpus"
    mixture.split_files(work, HELD, 10**9, 3)
    found = mixture.openings(work, {"docs": 100, "reviews": 48}, 3)
    held = {entry["text"]: entry["held"] for entry in found}
    assert sorted(set(held.values())) == ["no", "yes"] and all(20 <= len(text.split()) <= 30 for text in held)
    for text, side in held.items():
        path = out / f"{'held' if side == 'yes' else 'train'}-{'docs' if text.startswith('docs') else 'reviews'}.jsonl"
        assert any(text in entry["text"] for entry in read(path))
    lines(work / "openings.jsonl", found)
    lines(work / "w.jsonl", [
        {"text": f"{entry['text']} {words(f'go{i}on')}", "id": f"sampled-{i}"} for i, entry in enumerate(found * 2)
    ])  # fmt: skip
    stolen = read(out / "held-novel.jsonl")[0]["text"]
    lines(work / "c.jsonl", [
        {"text": f"{SYSTEM}{i % 10}<|im_end|>\n<|im_start|>assistant\n{stolen if i == 7 else words(f'chat{i}x')}"}
        for i in range(20)
    ])  # fmt: skip
    mixture.split_sampled(work, {"chat": ["c"], "continuation": ["w"]}, HELD, 3)
    texts = {path.stem: [entry["text"] for entry in read(path)] for path in out.glob("*.jsonl")}
    assert {name: len(texts[f"held-{name}"]) for name in HELD} == HELD
    assert {name for name in texts if name.startswith("train")} == {f"train-{kind}" for kind in mixture.TRAINED}
    assert len(texts["train-chat"]) == 20 - 2 - 2 - 1  # held, of the same prompts, stolen
    runs = {tuple(text.split()[i : i + 8]) for n, held_texts in texts.items() if n.startswith("held")
            for text in held_texts for i in range(len(text.split()) - 7) if "<|" not in text}  # fmt: skip
    trained = [text.split() for name, train_texts in texts.items() if name.startswith("train") for text in train_texts]
    assert len(trained) > 100 and not any(tuple(w[i : i + 8]) in runs for w in trained for i in range(len(w) - 7))


def test_the_mixture_has_its_share_of_each_kind_and_tokens_are_counted(work: Path, the: dict[str, ModuleType]) -> None:
    mixture, out = the["mixture"], work / "corpus"
    out.mkdir()
    for kind in ("chat", "docs"):
        lines(out / f"train-{kind}.jsonl", [{"text": f"{kind} {i:03d} " + "x" * 91} for i in range(100)])
    mixture.mix(out, {"chat": 5000, "docs": 2000}, 1)
    texts = [entry["text"] for entry in the["splitting"].read(out / "calibration.jsonl")]
    kinds = [text.split()[0] for text in texts]
    assert kinds.count("chat") in (50, 51) and kinds.count("docs") in (20, 21) and kinds != sorted(kinds)
    found = mixture.count(out, lambda text: len(text.split()))
    assert found["train-chat"]["documents"] == 100 and found["train-chat"]["tokens"] == 300
    assert json.loads((out / "tokens.json").read_text()) == found


def test_a_speech_without_paragraphs_is_cut_at_its_sentences(tmp_path: Path, the: dict[str, ModuleType]) -> None:
    speech = " ".join(f"Sentence {i} of the address to both houses, Mr. President!" for i in range(200))
    (tmp_path / "speech.txt").write_text(speech)
    (tmp_path / "novel.txt").write_text("\n\n".join(f"Paragraph {i}. It goes on." + "x" * 500 for i in range(20)))
    found = list(the["package_texts"].plain(tmp_path))
    spoken = [entry["text"] for entry in found if entry["source"].startswith("speech.txt#")]
    assert " ".join(spoken) == speech and len(spoken) == 4 and max(map(len, spoken)) <= 3000
    written = [entry["text"] for entry in found if entry["source"].startswith("novel.txt#")]
    assert len(written) == 2 and all("It goes on.xxx" in text and "\n\n" in text for text in written)
    assert len({entry["source"] for entry in found}) == len(found)
    assert list(the["package_texts"].sentences("a" * 4000 + ". B.", 3000)) == ["a" * 4000 + ".", "B."]


def test_a_directory_comes_back_from_its_pieces_and_what_is_missing_is_named(
    tmp_path: Path, the: dict[str, ModuleType]
) -> None:
    source = tmp_path / "state"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "large.bin").write_bytes(bytes(range(251)) * 800)
    (source / "empty").write_bytes(b"")
    (source / "small.json").write_text("{}")
    listing = the["pieces"].split(source, tmp_path / "out", mib=1 / 16)
    sizes = [path.stat().st_size for path in (tmp_path / "out").iterdir()]
    assert max(sizes) <= 65536 and len(sizes) == 1 + 4 + 1
    back = the["pieces"].join(listing, tmp_path / "back")
    for path in ("deep/large.bin", "empty", "small.json"):
        assert (back / path).read_bytes() == (source / path).read_bytes()
    (tmp_path / "out" / "state.002").write_bytes(b"x")
    with pytest.raises(SystemExit, match=r"missing or damaged: state\.002;"):
        the["pieces"].join(listing, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_training_that_goes_on_elsewhere_ends_as_one_that_was_never_stopped(
    tmp_path: Path, the: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped, cut into pieces, put together in another directory, continued: equal bit for bit."""
    toy = write_toy(tmp_path / "toy")
    homes = [tmp_path / name for name in ("straight", "stopped", "elsewhere")]
    for home in homes:
        home.mkdir()
        shutil.copytree(toy / "model", home / "teacher")
        (home / "corpus").mkdir()
        texts = [path.read_text(encoding="utf-8") for path in sorted((toy / "texts").iterdir())]
        lines(home / "corpus" / "train-docs.jsonl", [{"text": text} for text in texts])
    recipe = compose([
        "training=quick_distill", "model=./teacher", "model.teacher=./teacher", "+data.sources.docs.kind=jsonl",
        "+data.sources.docs.path=corpus/train-docs.jsonl", "~data.sources.python-docs", "data.held_out_share=0",
        "data.sequence_length=32", "batch.micro_batch=2", "budget.max_seconds=null", "budget.total_tokens=512",
        "schedule.kind=linear", "device.accelerator=cpu", "device.precision=bf16-mixed", "model.subln=none",
        "checkpoint.save_every=2", "checkpoint.keep_last=2", "out=distilled", "log.tracker=none",
    ])  # fmt: skip

    def stop(position: Position, figures: Mapping[str, float]) -> None:
        if position.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.chdir(homes[0])
    assert train(recipe).finished
    monkeypatch.chdir(homes[1])
    assert not train(recipe, on_step=stop).finished
    parcel, pieces = the["parcel"], tmp_path / "pieces"
    packed = list(parcel.contents(homes[1], texts=False))
    states = {path.parent.name for path in packed if "state" in path.parts}
    assert states == {"step-00000005"} and len(list((homes[1] / "distilled" / "state").iterdir())) == 2
    listing = the["pieces"].split_files(homes[1], packed, pieces / "run", mib=1 / 64)
    assert max(path.stat().st_size for path in pieces.glob("run.[0-9]*")) <= 16384
    the["pieces"].join(listing, homes[2])
    monkeypatch.chdir(homes[2])
    steps: list[int] = []
    assert train(recipe, on_step=lambda position, figures: steps.append(position.step)).finished
    assert steps == [6, 7, 8]
    a, b = (load_file(homes[i] / "distilled" / "model.safetensors") for i in (0, 2))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_what_is_finished_travels_without_its_states(tmp_path: Path, the: dict[str, ModuleType]) -> None:
    for name in ("done/distilled", "distilled/model.safetensors", "distilled/state/step-00000009/state.json",
                 "blocks/state/step-00000002/state.json", "blocks/state/.step-00000004/state.json",
                 "blocks/state/step-00000003/state.json", "blocks/metrics.jsonl", "calibrated-row.state/0.safetensors",
                 "corpus/train-chat.jsonl", "chat-1.jsonl", "figures/x.json"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    found = {path.relative_to(tmp_path).as_posix() for path in the["parcel"].contents(tmp_path, texts=False)}
    assert found == {"done/distilled", "distilled/model.safetensors", "blocks/state/step-00000003/state.json",
                     "blocks/metrics.jsonl", "calibrated-row.state/0.safetensors"}  # fmt: skip


def test_a_wrong_stage_and_a_missing_directory_are_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "run.py"), str(tmp_path), "--model", "none", "--stages"]
    for stages, code, said in (("corpus,nope", 2, "nope: choose from documentation"), ("addresses", 1, "--addresses:")):
        result = subprocess.run([*command, stages], capture_output=True, text=True)
        assert result.returncode == code and said in result.stderr
