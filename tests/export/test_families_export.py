"""Every family that can be converted: the engine follows it, or export says what it cannot run and leaves nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tokenizer_toys
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from family_toys import FAMILY_TOYS, family_toy

from wrinklefree.errors import FormatError, InputError
from wrinklefree.export.export import export
from wrinklefree.models.convert import convert_model
from wrinklefree.models.io import CheckpointInfo, save_checkpoint
from wrinklefree.quant.ternary import TernarySpec

# What the engine cannot run, and what a user is told.
REFUSED = {
    "llama-rope-yarn": "rope_type: found 'yarn', allowed are default, linear, llama3",
    "gemma": "model_type: found 'gemma', allowed are llama",
    "gemma2": "model_type: found 'gemma2', allowed are llama",
}
SPEC = TernarySpec("group", 64)


def checkpoint(out: Path, name: str, exclude: tuple[str, ...] = ()) -> Path:
    toy = family_toy(name, vocab_size=258, bos_token_id=256, eos_token_id=257)
    convert_model(toy, SPEC, exclude=exclude)
    tokenizer_toys.write(out.with_name("tokenizer"))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out.with_name("tokenizer"))
    save_checkpoint(toy, tokenizer, out, CheckpointInfo("stage1_subln", spec=SPEC, exclude=exclude))  # type: ignore[arg-type]
    return out


@pytest.mark.parametrize("name", FAMILY_TOYS)
def test_engine_follows_every_family_or_says_what_it_cannot_run(tmp_path: Path, name: str) -> None:
    source = checkpoint(tmp_path / "src", name)
    if name in REFUSED:
        with pytest.raises(FormatError, match=REFUSED[name]):
            export(source, tmp_path / "out", threads=1)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["src", "tokenizer"]
        return
    report = export(source, tmp_path / "out", embedding="f16", threads=1, greedy_tokens=8)
    assert report.agreement is not None and report.agreement.passed


def test_layers_left_in_full_precision_are_refused_before_any_work(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "src", "llama", exclude=("down_proj",))
    seen: list[str] = []
    with pytest.raises(InputError, match=r"down_proj.weight: a Linear stayed in full precision"):
        export(source, tmp_path / "out", threads=1, show=lambda share, what: seen.append(what))
    assert seen == ["loading the source"] and not (tmp_path / "out").exists()
