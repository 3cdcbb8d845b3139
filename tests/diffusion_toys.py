"""Small ternary diffusion models that know a language, so that their confidences mean something.

The language: ten words of three to six letters, each letter in one word only, said in a fixed order with a jump now
and then. Within a word everything follows, and most of the next word, so that a threshold of 0.9 decides several
letters at once and still not all; jumps keep some of it open.

One model (Qwen3: QK-norm, two key/value heads for four) learns it as ``fast_dllm`` in some seconds, the others go on
from there. All is made once in a process and must not be changed. For the rooms' tests: put ``tests`` and
``tests/train`` on the path.
"""

from __future__ import annotations

import atexit
import random
import shutil
import string
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from wrinklefree.artifact.diffusion_marker import DiffusionMarker
from wrinklefree.export.export import export
from wrinklefree.models.io import CheckpointInfo, save_checkpoint
from wrinklefree.models.mask_token import MASK_TOKEN
from wrinklefree.objectives import BlockDiffusion
from wrinklefree.objectives.manager import ObjectiveManager, Tally, Term
from wrinklefree.objectives.noise import NOISED_VIEW, Diffusion, noised_view

sys.path.append(str(Path(__file__).parent / "train"))
from train_toys import pack, toy_model

VOCABULARY = 48
EOS, MASK = 0, VOCABULARY - 1
BLOCK = 16
VARIANTS = {
    "fast_dllm": Diffusion(block_size=BLOCK),
    "fast_dllm_causal_clean_half": Diffusion(block_size=BLOCK, clean_half="causal"),
    "causal": Diffusion("causal", block_size=BLOCK),
    "llada": Diffusion("llada", block_size=BLOCK),
}
_LETTERS = iter(range(1, MASK))
WORDS = [[next(_LETTERS) for _ in range(length)] for length in (3, 4, 5, 4, 6, 5, 4, 3, 6, 5)]
_JUMPS = 0.02  # of the words are followed by any other
_STEPS = {"fast_dllm": 100, "fast_dllm_causal_clean_half": 20, "causal": 30, "llada": 80}
_RATE = 0.02


def text(seed: int, length: int = 63) -> list[int]:
    """Return the ids of a text of ``length`` letters."""
    draw = random.Random(seed)
    word, out = draw.randrange(len(WORDS)), []
    while len(out) < length:
        out += WORDS[word]
        word = draw.randrange(len(WORDS)) if draw.random() < _JUMPS else (word + 1) % len(WORDS)
    return out[:length]


@cache
def diffusion_toy(name: str) -> tuple[nn.Module, DiffusionMarker]:
    """Return the trained model of a variant and its marker."""
    settings = VARIANTS[name]
    sizes = {"initializer_range": 0.05, "vocab_size": VOCABULARY, "max_position_embeddings": 256, "eos_token_id": EOS}
    model = toy_model(3, "qwen3", ternary=True, bos_token_id=None, pad_token_id=None, **sizes)
    if name != "fast_dllm":
        model.load_state_dict(diffusion_toy("fast_dllm")[0].state_dict())
    _train(model, settings, _STEPS[name])
    marker = DiffusionMarker(MASK, settings.block_size, settings.shift, settings.variant, settings.rule.clean)
    return model.eval(), marker


def _train(model: nn.Module, settings: Diffusion, steps: int) -> None:
    manager = ObjectiveManager(
        {"it": Term(BlockDiffusion())}, monitor=(), views={NOISED_VIEW: noised_view(settings, MASK, 0)}, banned=MASK
    )
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
    for step in range(steps):
        batch = pack([[[*text(4 * step + row), EOS]] for row in range(4)], 64).numbered(4 * step)
        counts = manager.counts(batch, {"it": 1.0})
        manager.loss(model, batch, {"it": 1.0}, counts, None, Tally()).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def tokenizer() -> PreTrainedTokenizerFast:
    """One letter, one token; id 0 ends a text, the last is MASK."""
    names = ["</s>", *string.ascii_letters[: MASK - 1], MASK_TOKEN]
    letters = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="a"))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    letters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="</s>", mask_token=MASK_TOKEN)


@cache
def checkpoint(name: str) -> Path:
    """Return the directory of the checkpoint of a variant; it goes when the process ends."""
    model, marker = diffusion_toy(name)
    out = _directory() / name
    save_checkpoint(model, tokenizer(), out, CheckpointInfo("toy", dlm=marker.to_json()))  # type: ignore[arg-type]
    return out


@cache
def packed(name: str) -> Path:
    """Return the packed directory of a variant; it goes when the process ends."""
    out = _directory() / f"{name}-packed"
    export(checkpoint(name), out, threads=1, verify=False)
    return out


@cache
def _directory() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="diffusion-toys-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory
