"""Toys with random weights that say they are diffusion models: every rule of attention, with and without shift."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from toy_models import BASE, add_tokenizer, write_toy

from wrinklefree.artifact.diffusion_marker import DiffusionMarker

MASK, PAD, END = 255, 254, 0
# name -> (variant, clean half, token shift)
KINDS: dict[str, tuple[str, Any, bool]] = {
    "fast_dllm": ("fast_dllm", "block_causal", True),
    "fast_dllm_causal_text": ("fast_dllm", "causal", True),
    "llada": ("llada", "block_causal", False),
    "causal": ("causal", "causal", True),
    "causal_unshifted": ("causal", "causal", False),
    "causal_block_text": ("causal", "block_causal", True),
}


def marker_of(kind: str, block_size: int | None) -> DiffusionMarker:
    variant, clean, shift = KINDS[kind]
    return DiffusionMarker(MASK, block_size, shift, variant, clean)


def make_diffusion_toy(
    directory: Path,
    kind: str,
    block_size: int | None = 8,
    seed: int = 0,
    packing: tuple[str, int, dict[str, Any]] = ("row", 64, {}),
    **config: Any,
) -> Path:
    """Write a packed toy with a marker; its logits are spread out, so that some guesses are confident.

    ``packing``: granularity, group size and options of `write_toy`. MASK is the last token of the vocabulary.
    """
    granularity, group_size, options = packing
    config = {**BASE, "pad_token_id": PAD, **config}
    write_toy(directory, config, granularity, group_size, seed, **options)
    path = directory / "config.json"
    found = json.loads(path.read_text())
    mask = config["vocab_size"] - 1
    found["wrinklefree"]["dlm"] = {**marker_of(kind, block_size).to_json(), "mask_token_id": mask}
    path.write_text(json.dumps(found))
    add_tokenizer(directory, config["vocab_size"])
    return directory
