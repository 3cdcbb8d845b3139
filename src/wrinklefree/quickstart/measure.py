"""The figures of the quickstart: held-out losses, decode speeds, sizes, the machine."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wrinklefree.engine import Engine
from wrinklefree.engine.native import load_native
from wrinklefree.eval.loss import engine_logits, held_out_loss, torch_logits
from wrinklefree.eval.text import EvaluationText
from wrinklefree.quant.bitlinear import full_strength, held_codes

DECODE_TOKENS = 64
TORCH_DECODE_TOKENS = 16
ROUNDS = 3


def torch_loss(model: nn.Module, text: EvaluationText) -> float:
    """Return the loss of a torch model in nats per token, at full quantisation strength, in float32."""
    model.eval()
    with full_strength(model), held_codes(model):
        return held_out_loss(torch_logits(model), text).loss


def engine_loss(engine: Engine, text: EvaluationText) -> float:
    """Return the loss of the native engine in nats per token."""
    return held_out_loss(engine_logits(engine), text).loss


def decode_speeds(engine: Engine, dense: nn.Module, threads: int) -> dict[str, float]:
    """Return tokens per second of the engine and of the dense torch model in float32, one sequence, key-value cache.

    The two take turns, on the same number of threads; medians of ``ROUNDS``.
    """
    ours, theirs = [], []
    with _torch_threads(threads):
        for _ in range(ROUNDS):
            ours.append(DECODE_TOKENS / engine.decode_seconds(DECODE_TOKENS))
            theirs.append(_torch_decode(dense))
    return {"engine": statistics.median(ours), "torch_fp32": statistics.median(theirs)}


@torch.inference_mode()
def _torch_decode(model: Any) -> float:
    """Tokens per second of greedy decoding; the prompt and the first step are not timed."""
    state = model(input_ids=torch.tensor([[1, 2, 3, 4]]), use_cache=True)
    token = state.logits[:, -1:].argmax(-1)
    state = model(input_ids=token, past_key_values=state.past_key_values, use_cache=True)
    started = time.perf_counter()
    for _ in range(TORCH_DECODE_TOKENS):
        token = state.logits[:, -1:].argmax(-1)
        state = model(input_ids=token, past_key_values=state.past_key_values, use_cache=True)
    return TORCH_DECODE_TOKENS / (time.perf_counter() - started)


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def directory_bytes(path: Path) -> int:
    """Return the bytes of a file, or of the files in a directory."""
    if path.is_file():
        return path.stat().st_size
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())


def machine(engine: Engine) -> dict[str, Any]:
    """Return what ran all this."""
    return {
        "cpu": load_native().kernels.cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "kernels": engine.kernels_name,
        "kernels_reason": engine.kernels_reason,
        "engine_threads": engine.threads,
        "torch_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }
