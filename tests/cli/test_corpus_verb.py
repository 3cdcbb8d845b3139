"""`wf corpus` end to end on a toy: from prompts and without, deterministic; training and calibration read it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from train_toys import toy_model
from transformers import PreTrainedTokenizerFast

from wrinklefree.cli.main import main
from wrinklefree.train.compose import compose
from wrinklefree.train.stage import train

TEMPLATE = "{% for m in messages %}<user>{{ m['content'] }}{% endfor %}<answer>"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("toy")
    raw = Tokenizer(models.BPE(unk_token=None))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<eos>", "<user>", "<answer>"]
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=special, initial_alphabet=alphabet)
    raw.train_from_iterator(["the number and the other number make a number in all"] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<eos>", additional_special_tokens=special[1:], chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(directory / "model")
    model = toy_model(1, vocab_size=len(tokenizer), max_position_embeddings=512)
    model.save_pretrained(directory / "model")  # type: ignore[operator]
    (directory / "prompts.txt").write_text("the number\n\nin all\n", encoding="utf-8")
    return directory


def lines(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_sampled_corpus_is_trained_on_and_calibrated_with(toy: Path, tmp_path: Path) -> None:
    command = ["corpus", str(toy / "model"), "--tokens", "3000", "--max-tokens", "40", "--seed", "3"]
    assert main([*command, str(tmp_path / "a.jsonl"), "--json", str(tmp_path / "report.json")]) == 0
    assert main([*command, str(tmp_path / "b.jsonl")]) == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["tokens"] >= 3000 and report["documents"] == len(lines(tmp_path / "a.jsonl"))
    recipe = compose([
        "training=logits_only", f"model={toy / 'model'}", f"data={tmp_path / 'a.jsonl'}", "data.sequence_length=32",
        "batch.micro_batch=2", "batch.accumulation=1", "budget.total_tokens=null", "budget.max_steps=3",
        "device.accelerator=cpu", "optimizer=adamw",
    ])  # fmt: skip
    assert train(recipe, out=tmp_path / "out").result.position.step == 3
    words = ["convert", str(toy / "model"), str(tmp_path / "ternary"), "--calibration", str(tmp_path / "a.jsonl")]
    assert main([*words, "--tokens", "512", "--no-check"]) == 0
    assert (tmp_path / "ternary" / "config.json").is_file()


def test_prompts_are_taken_in_turn_and_through_the_template(toy: Path, tmp_path: Path) -> None:
    command = [
        "corpus",
        str(toy / "model"),
        "--tokens",
        "60",
        "--max-tokens",
        "5",
        "--prompts",
        str(toy / "prompts.txt"),
    ]
    assert main([*command, str(tmp_path / "plain.jsonl")]) == 0
    plain = lines(tmp_path / "plain.jsonl")
    assert all(text.startswith(("the number", "in all")[i % 2]) for i, text in enumerate(plain))
    assert main([*command, str(tmp_path / "chat.jsonl"), "--chat"]) == 0
    assert lines(tmp_path / "chat.jsonl")[0].startswith("<user>the number<answer>")


def test_prompts_of_a_jsonl_file_are_taken_as_they_are_with_special_tokens(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"text": "<user>the\nnumber<answer>"}) + "\n", encoding="utf-8")
    command = ["corpus", str(toy / "model"), "--tokens", "60", "--max-tokens", "5", "--together", "6", "--rows", "2"]
    assert main([*command, str(tmp_path / "out.jsonl"), "--prompts", str(tmp_path / "prompts.jsonl")]) == 0
    found = lines(tmp_path / "out.jsonl")
    assert len(found) >= 12 and all(text.startswith("<user>the") and "number<answer>" in text for text in found)


def test_a_template_that_begins_with_the_bos_token_keeps_it(toy: Path, tmp_path: Path) -> None:
    """A tokenizer that puts no BOS before a text would not put it back."""
    model = tmp_path / "model"
    shutil.copytree(toy / "model", model)
    settings = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "bos_token": "<user>"}), encoding="utf-8")
    command = ["corpus", str(model), "--tokens", "10", "--max-tokens", "5", "--prompts", str(toy / "prompts.txt")]
    assert main([*command, str(tmp_path / "chat.jsonl"), "--chat"]) == 0
    assert lines(tmp_path / "chat.jsonl")[0].startswith("<user>the number<answer>")


def test_what_cannot_be_is_refused(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(toy / "model")
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    for words, message in (
        ([model, str(tmp_path / "a.txt")], "must end with .jsonl"),
        ([model, str(tmp_path / "a.jsonl"), "--chat"], "needs --prompts"),
        ([model, str(tmp_path / "a.jsonl"), "--prompts", str(tmp_path / "empty.txt")], "holds no prompt"),
        ([model, str(tmp_path / "a.jsonl"), "--dtype", "float3"], "did you mean 'float32'"),
        ([model, str(tmp_path / "a.jsonl"), "--top-p", "0"], "top_p above 0"),
    ):
        assert main(["corpus", *words]) == 2
        assert message in capsys.readouterr().err
