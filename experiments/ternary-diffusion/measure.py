"""Figures of one model on held-out text: next-token loss, acceptance of drafts by depth, diffusion bound.

python measure.py MODEL HELD_DIRECTORY OUT.json [--strength 0] [--tokens N] [--greedy N] [--precision bf16]

HELD_DIRECTORY has held-KIND.jsonl. Every document is cut into windows of WINDOW tokens.

``draft``: an accepted draft of depth j is a MASK, the j-th behind the last clean token, whose most probable token is
the model's own most probable next token given the true text before it; on the held-out text as it is. ``greedy``: the
same on what the model continues held-out chats with, greedily, where a depth counts only when all smaller ones agreed,
as in self-speculative decoding: ``conditional`` divides by how often a depth was ``reached``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wrinklefree.data.batch import TokenBatch
from wrinklefree.data.document import SourceConfig
from wrinklefree.data.packing import PackedSequences
from wrinklefree.data.sources import read_documents
from wrinklefree.data.tokens import TextEncoder, tokenize
from wrinklefree.eval.diffusion import bound
from wrinklefree.eval.masked_losses import torch_masked_losses
from wrinklefree.eval.text import from_packed
from wrinklefree.models.forward import forward
from wrinklefree.models.io import load_checkpoint, load_source
from wrinklefree.models.mask_token import DiffusionMarker
from wrinklefree.models.sampling import sample
from wrinklefree.objectives.noise import CLEAN_HALF, DRAFTS, Diffusion, NoisedBatch, noised
from wrinklefree.quant.bitlinear import bit_linears, held_codes, quant_strength
from wrinklefree.train.student import is_converted, text_encoder

WINDOW = 256
DEPTHS = 7
KINDS = ("chat", "docs")
_ROWS = 64
_ANSWER = "<|im_start|>assistant\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("held", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--strength", type=float, default=1.0, help="of the quantisation; 0 is full precision")
    parser.add_argument("--tokens", type=int, default=2048, help="of each kind of text")
    parser.add_argument("--greedy", type=int, default=512, help="tokens of greedy answers; 0 makes none")
    parser.add_argument("--samples", type=int, default=2, help="masks of each block for the diffusion bound")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    a = parser.parse_args()
    started = time.monotonic()
    figures = measure(a.model, a.held, a.strength, a.tokens, a.greedy, a.samples, a.precision, a.device)
    figures["seconds"] = round(time.monotonic() - started, 1)
    a.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures))


@torch.no_grad()
def measure(
    name: str, held: Path, strength: float, tokens: int, greedy: int, samples: int, precision: str, device: str = "cpu"
) -> dict[str, Any]:
    """Return every figure of a model; a model without a diffusion marker has no drafts and no bound."""
    marker = None
    if is_converted(name):
        model, tokenizer, info = load_checkpoint(name)
        marker = None if info.dlm is None else DiffusionMarker.of(info.dlm, name)
        quant_strength(model).value = strength
    else:
        model, tokenizer = load_source(name, torch.float32)
    encoder = text_encoder(tokenizer)
    model.to(device)
    bf16 = torch.autocast(device, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
    codes = held_codes(model) if next(bit_linears(model), None) is not None else contextlib.nullcontext()
    figures: dict[str, Any] = {"model": name, "strength": strength, "precision": precision, "text": {}}
    with bf16, codes:
        for kind in KINDS:
            rows = packed(held / f"held-{kind}.jsonl", encoder, tokens)
            found = next_token(model, rows, marker)
            if marker is not None:
                found["draft"] = drafts(model, rows, marker)
                report = bound(torch_masked_losses(model, marker), from_packed(rows, kind), marker.block_size, samples)
                found["bound"] = {"loss": report.loss, "standard_error": report.standard_error}
            figures["text"][kind] = found
        if marker is not None and greedy:
            figures["greedy"] = greedy_drafts(model, held / "held-chat.jsonl", encoder, marker, greedy)
    return figures


def packed(path: Path, encoder: TextEncoder, tokens: int) -> PackedSequences:
    """Return whole sequences of a held-out file, at most ``tokens`` of them."""
    documents = tokenize(read_documents(SourceConfig(kind="jsonl", path=str(path))), encoder)
    cut = type(documents)(documents.tokens[:tokens], np.unique(np.minimum(documents.starts, tokens)))
    return PackedSequences(cut, WINDOW, encoder.eos_id)


def batches(model: nn.Module, rows: PackedSequences) -> Iterator[TokenBatch]:
    device = next(model.parameters()).device
    for index in range(len(rows)):
        yield rows.batch(np.array([index])).to(device).numbered(index)


def logits(model: nn.Module, states: Tensor, head: Any, marker: DiffusionMarker | None) -> Iterator[Tensor]:
    """Yield float32 logits of some states at a time, without MASK."""
    for part in states.split(_ROWS):
        values = head(part).float()
        if marker is not None:
            values[:, marker.mask_token_id] = float("-inf")
        yield values


def next_token(model: nn.Module, rows: PackedSequences, marker: DiffusionMarker | None) -> dict[str, Any]:
    """Return the loss in nats a token and how often the token came first, over all predicted tokens."""
    total, first, count = 0.0, 0, 0
    for batch in batches(model, rows):
        output, chosen = forward(model, batch), batch.selection()
        states = output.final.flatten(0, 1)[chosen.states]
        parts = zip(logits(model, states, output.head, marker), chosen.targets.split(_ROWS), strict=True)
        for values, targets in parts:
            total += float(F.cross_entropy(values, targets, reduction="sum"))
            first += int((values.argmax(-1) == targets).sum())
        count += len(chosen.targets)
    return {"loss": total / count, "top1": first / count, "tokens": count}


def fully_masked(batch: TokenBatch, marker: DiffusionMarker) -> NoisedBatch:
    """Return the view in which every block of DEPTHS + 1 tokens is MASK: each depth once in every block."""
    settings = Diffusion("causal", block_size=DEPTHS + 1, complementary=False, min_ratio=1.0)
    return noised(batch, settings, marker.mask_token_id, 0)


def agreements(model: nn.Module, batch: TokenBatch, marker: DiffusionMarker) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each draft its block's number, its depth and whether it is the model's own next token.

    ``block`` int64, ``depth`` int64 from 1, ``agreed`` bool, all [N].
    """
    view = fully_masked(batch, marker)
    output, rows = forward(model, view), view.selection(DRAFTS)
    assert rows.teacher is not None
    clean = view.selection(CLEAN_HALF).states
    states = output.final.flatten(0, 1)
    own = torch.full((len(states),), -1, device=states.device)
    own[clean] = torch.cat([x.argmax(-1) for x in logits(model, states[clean], output.head, marker)])
    drafted = torch.cat([x.argmax(-1) for x in logits(model, states[rows.states], output.head, marker)])
    depth = masks_up_to(view, marker.mask_token_id)[rows.states]
    block = view.block_ids.flatten()[rows.states] + 4096 * view.document_ids.flatten()[rows.states]
    kept, agreed = depth > 0, drafted == own[rows.teacher]
    return block[kept].cpu(), depth[kept].cpu(), agreed[kept].cpu()


def masks_up_to(view: NoisedBatch, mask_token_id: int) -> Tensor:
    """Return for each slot how many MASKs in a row end there, in its block; a document's first token is never one."""
    masked = (view.input_ids == mask_token_id) & view.noised
    place = view.position_ids % (DEPTHS + 1)
    run = masked.long()
    for column in range(1, run.shape[1]):
        same = place[:, column] > 0
        run[:, column] = masked[:, column] * (1 + same * run[:, column - 1])
    return run.flatten()


def drafts(model: nn.Module, rows: PackedSequences, marker: DiffusionMarker) -> list[float]:
    """Return the share of agreeing drafts of each depth on the text as it is."""
    hits, counts = torch.zeros(DEPTHS), torch.zeros(DEPTHS)
    for batch in batches(model, rows):
        _, depth, agreed = agreements(model, batch, marker)
        counts += torch.bincount(depth - 1, minlength=DEPTHS)
        hits += torch.bincount(depth - 1, agreed.float(), minlength=DEPTHS)
    return [round(float(x), 4) for x in hits / counts.clamp_min(1)]


def greedy_drafts(
    model: nn.Module, held: Path, encoder: TextEncoder, marker: DiffusionMarker, tokens: int
) -> dict[str, Any]:
    """Return acceptance along the model's own greedy answers to held-out prompts, 64 tokens each."""
    texts = [document.text for document in read_documents(SourceConfig(kind="jsonl", path=str(held)))]
    prompts = [encoder.encode(text.split(_ANSWER)[0] + _ANSWER) for text in texts[: max(1, tokens // 64)]]
    model.config.use_cache = True  # type: ignore[union-attr]
    answers = sample(model, prompts, [0] * len(prompts), 64, 0.0, 1.0, (encoder.eos_id,))
    reached, hits = torch.zeros(DEPTHS), torch.zeros(DEPTHS)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([[*prompt, *answer]])
        batch = TokenBatch(ids, ids.clone(), torch.arange(ids.shape[1])[None], torch.zeros_like(ids, dtype=torch.int32))
        batch.labels[0, : len(prompt) + 1] = -100
        batch = batch.to(next(model.parameters()).device)
        block, depth, agreed = agreements(model, batch.numbered(0), marker)
        good = {(int(b), int(d)): bool(x) for b, d, x in zip(block, depth, agreed, strict=True)}
        for (b, d), accepted in good.items():
            before = [good.get((b, j)) for j in range(1, d)]
            if all(before):
                reached[d - 1] += 1
                hits[d - 1] += accepted
    return {
        "conditional": [round(float(x), 4) for x in hits / reached.clamp_min(1)],
        "reached": reached.int().tolist(),
        "tokens": sum(map(len, answers)),
    }


if __name__ == "__main__":
    main()
