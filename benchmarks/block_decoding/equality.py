"""Does the engine decode a diffusion model by blocks as its torch reference does, and are finished blocks clean?

    python benchmarks/block_decoding/equality.py CHECKPOINT PACKED [--tokens 512] [--out FILE.json]

CHECKPOINT is a diffusion model as training wrote it, PACKED what ``wf export CHECKPOINT PACKED`` made of it. Texts of
64 tokens follow prompts of many lengths, greedily, at thresholds 1.0 and 0.9, ``--tokens`` in all at each. Every pass
of the engine is replayed in the reference (`wrinklefree.export.block_replay`): a difference is explained when measured
rounding noise could have made the reference do the same. Then the cache of finished blocks is compared with one that
is made of the final tokens alone. The exit code is 1 when something is unexplained.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from wrinklefree.artifact.diffusion_marker import DiffusionMarker
from wrinklefree.artifact.files import write_bytes
from wrinklefree.engine import Batch, BatchItem, Engine
from wrinklefree.export.block_replay import compare_block_decoding
from wrinklefree.export.tables import MOMENT_FORMATS, head_moments, quantized_tables
from wrinklefree.models.block_decoding import DecodingSettings
from wrinklefree.models.io import load_checkpoint

ANSWER = 64  # tokens of a text
# From less than a block of 32 to several, one of them exactly full.
PROMPTS = (
    "The",
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Water boils at a lower temperature on a mountain because",
    "In 1969, 2 people walked on the Moon; they stayed for",
    "Once upon a time there was a small village between two rivers, and every spring the rivers rose until",
    'import numpy as np\n\n\ndef normalise(values: np.ndarray) -> np.ndarray:\n    """Return values with mean 0."""\n',
    "The list of planets, from the Sun outwards: Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and",
)


def decoded_equally(
    engine: Engine, model: nn.Module, marker: DiffusionMarker, threshold: float, num_tokens: int, embedding: Any
) -> dict[str, Any]:
    """Return what replaying ``num_tokens`` tokens found; ``embedding``: the precision that PACKED has."""
    encode = engine.tokenizer.encode
    tables = quantized_tables(model, embedding, head_moments(model, encode) if embedding in MOMENT_FORMATS else None)
    size, found = marker.block_size or 0, []
    done = 0
    while done < num_tokens:
        turn = len(found)
        prompt = encode(PROMPTS[turn % len(PROMPTS)] * (1 + turn // len(PROMPTS)))
        if turn % len(PROMPTS) == 5:
            prompt = prompt[: max(1, len(prompt) // size) * size]
        count = min(ANSWER, num_tokens - done)
        found.append(compare_block_decoding(engine, model, marker, prompt, count, DecodingSettings(threshold), tables))
        done += found[-1].tokens
    differences = [asdict(each) | {"explained": each.explained} for one in found for each in one.differences]
    return {
        "threshold": threshold,
        "tokens": done,
        "forwards": sum(one.forwards for one in found),
        "forwards_of_the_reference": sum(one.looks for one in found),
        "passed": all(one.passed for one in found),
        "explained": sum(each["explained"] for each in differences),
        "unexplained": sum(not each["explained"] for each in differences),
        "confidence_difference": max(one.confidence_difference for one in found),
        "confidence_noise": max(one.confidence_noise for one in found),
        "differences": differences,
    }


def finished_blocks_are_clean(engine: Engine, marker: DiffusionMarker, prompt: list[int]) -> bool:
    """Whether rows behind finished blocks are the same, to the bit, over a used cache and one from nothing.

    Blocks are computed as open ones are, with MASK in them, and then once more with their final tokens.
    """
    size = marker.block_size or 0
    clean = 1 if marker.clean_half == "causal" else size
    noised = 1 if marker.rule.noised == "causal" else size
    tokens = (prompt * size)[: 3 * size]
    masked = [marker.mask_token_id] * size
    with Batch(engine) as batch:
        used, fresh = batch.open(), batch.open()
        for start in range(0, len(tokens), size):
            half = tokens[start : start + size // 2] + masked[size // 2 :]
            batch.step([BatchItem(used, masked, "none", start, noised)])
            batch.step([BatchItem(used, half, "none", start, noised)])
            batch.step([BatchItem(used, tokens[start : start + size], "none", start, clean)])
        batch.step([BatchItem(fresh, tokens, "none", 0, clean)])
        one, other = (batch.step([BatchItem(slot, masked, "all", len(tokens), noised)])[0] for slot in (used, fresh))
    return bool(np.array_equal(one, other))


def main(arguments: list[str] | None = None) -> int:
    """Print the report as JSON, and write it when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("packed", type=Path)
    parser.add_argument("--tokens", type=int, default=512, help="at each threshold")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    model, _, info = load_checkpoint(given.checkpoint)
    marker = DiffusionMarker.of(info.dlm, str(given.checkpoint))
    engine = Engine.load(given.packed, threads=given.threads, slots=2, kv_type="float32")
    embedding = engine.config["wrinklefree"]["embedding"]
    runs = [decoded_equally(engine, model, marker, at, given.tokens, embedding) for at in (1.0, 0.9)]
    clean = finished_blocks_are_clean(engine, marker, engine.tokenizer.encode(PROMPTS[5]))
    text = json.dumps({"runs": runs, "finished_blocks_are_clean": clean}, indent=1)
    print(text)
    if given.out is not None:
        write_bytes(given.out, text.encode())
    return 0 if clean and all(run["passed"] for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
