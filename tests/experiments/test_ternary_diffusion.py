"""The parts of experiments/ternary-diffusion that could be wrong without anybody noticing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from train_toys import VOCABULARY, pack, random_documents, toy_model

from wrinklefree.models.forward import LOGITS, forward
from wrinklefree.models.mask_token import DiffusionMarker

HERE = Path(__file__).resolve().parents[2] / "experiments" / "ternary-diffusion"
sys.path[:0] = [str(HERE), str(HERE.parent / "shared")]

import documentation  # noqa: E402
import measure  # noqa: E402
import pieces  # noqa: E402
import prompts  # noqa: E402
import splitting  # noqa: E402

MASK = VOCABULARY - 1
MARKER = DiffusionMarker(MASK, 4, True, "causal", "causal")


def test_pieces_come_back_as_the_file_and_damage_is_named(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(bytes(range(256)) * 700)
    listing = pieces.split(file, tmp_path / "out", mib=1 / 16)
    assert len(json.loads(listing.read_text())["files"][0]["pieces"]) == 3
    assert pieces.join(listing, tmp_path / "back.bin").read_bytes() == file.read_bytes()
    (tmp_path / "out" / "weights.bin.001").write_bytes(b"x")
    (tmp_path / "out" / "weights.bin.002").unlink()
    with pytest.raises(SystemExit, match=r"weights.bin.001, weights.bin.002"):
        pieces.join(listing)


def test_held_out_text_is_of_other_prompts_and_other_files() -> None:
    def chat(prompt: str, answer: str) -> str:
        head = "<|im_start|>system\na system prompt of more than eight words for all of them<|im_end|>\n"
        return f"{head}<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{answer}"

    stolen = "one two three four five six seven eight nine"
    texts = [chat("a", stolen), chat("b", "nothing"), chat("a", "again"), chat("c", f"x {stolen}"), chat("d", "new")]
    train, held = splitting.split_chats(texts, 2)
    assert held == texts[:2] and train == [texts[4]]

    entries = [{"source": f"file{i // 3}#{i % 3}", "text": f"text {i} of file {i // 3}"} for i in range(30)]
    train, held = splitting.split_docs(entries, 3, 150, 0)
    files = {text.rsplit(" ", 1)[1] for text in held}
    assert len(held) == len(files) == 3 and train and sum(map(len, train)) < 200
    assert files.isdisjoint(text.rsplit(" ", 1)[1] for text in train)


def test_documentation_is_cut_at_blank_lines_and_prompts_are_different() -> None:
    text = "\n\n".join(f"{'word ' * 100}{i}" for i in range(40))
    parts = list(documentation.pieces(text))
    assert "\n\n".join(parts) == text and all(1500 <= len(part) <= 6500 for part in parts)
    assert len(set(prompts.prompts(500, 1))) == 500 and prompts.prompts(5, 1) == prompts.prompts(5, 1)


@pytest.mark.parametrize("prompt", [1, 12])
def test_agreement_by_depth_is_what_a_pass_with_masks_behind_clean_text_gives(prompt: int) -> None:
    """Against the definition: [clean prefix, MASK x j], whose last state is compared with the clean text's."""
    model = toy_model(3)
    document = [token % (MASK - 1) for token in random_documents([29], 6)[0]]
    batch = pack([[document]], 29).numbered(0)
    batch.labels[0, :prompt] = -100
    block, depth, agreed = measure.agreements(model, batch, MARKER)
    own = forward(model, batch, frozenset({LOGITS})).logits
    assert own is not None
    own[..., MASK] = float("-inf")
    expected = {}
    for start in range(0, 29, 8):
        clean = max(start, prompt)  # the prompt, at least the first token of a document, is never masked
        for j in range(1, start + 8 - clean):
            if clean + j < 29:  # the state of the j-th MASK predicts the token behind it
                seen = [*document[:clean], *[MASK] * j]
                logits = forward(model, pack([[seen]], len(seen)), frozenset({LOGITS})).logits
                assert logits is not None
                logits[..., MASK] = float("-inf")
                expected[start // 8, j] = bool(logits[0, -1].argmax() == own[0, clean + j - 1].argmax())
    found = {(int(b), int(d)): bool(a) for b, d, a in zip(block, depth, agreed, strict=True)}
    assert found == expected and torch.equal(depth.unique(), torch.arange(1, 8))


def test_a_wrong_stage_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "run.py"), str(tmp_path), "--model", "none", "--stages", "corpus,nope"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and "nope" in result.stderr


@pytest.mark.slow
def test_a_command_that_fails_ends_the_run_and_its_stage_is_not_done(tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text('{"text": "a"}\n')
    command = [sys.executable, str(HERE / "run.py"), str(tmp_path), "--model", str(tmp_path / "none.gguf")]
    (tmp_path / "corpus").mkdir()
    result = subprocess.run([*command, "--stages", "chats,dlm"], capture_output=True, text=True)
    assert result.returncode not in (0, 75) and (tmp_path / "done" / "chats").exists()
    assert not (tmp_path / "done" / "dlm").exists()
