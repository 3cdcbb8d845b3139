"""Damages packed model directories and loads them: only FormatError, InputError or a model that computes may come out.

A crash ends the process, so the caller sees it; so does an alarm when a load hangs; memory is capped, so that a number
in a file cannot make the loader reserve more than a small model needs. A model that loads in spite of the damage must
give logits or say that they are no numbers. Cases are a function of the seed: run it again to see the same one.
For longer, by hand:

    python native/tests/fuzz_loader.py --seconds 600 --seed 1
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import signal
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "engine"))

from toy_models import make_toy

from wrinklefree import _native
from wrinklefree.errors import FormatError, InputError

TOYS = ("llama_tensor", "llama_group_64", "qwen3", "bitnet", "linear_rope_f16_head", "bias_everywhere")
TOYS += ("q6_head", "untied_q4_head", "dense_row", "dense_group_128", "low_rank", "gemma3")
LAYOUTS = ("stored", "stored", "t2", "t1.6")  # in memory
SPARE_BYTES = 1 << 30  # above what the process has when it starts; a toy needs a few MiB
SECONDS_PER_LOAD = 20
NUMBERS = (0, 1, -1, 2, 3, 7, 63, 64, 255, 256, 2**15, 2**16, 2**20, 2**24, 2**31 - 1, 2**31, 2**32, 2**53, 2**62)
NUMBERS += (2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, -(2**63), -(2**31))
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    "",
    "x",
    "silu",
    "llama3",
    "t2-r16c64",
    "t1.6-r16c64",
    "q4",
    "q6",
    "F32",
    1e-300,
    1e300,
    0.5,
    -0.0,
    [],
    {},
    [0],
    {"a": 1},
)


def mutate_json(value: Any, rng: random.Random) -> Any:
    """Return a copy of a JSON value with one part replaced, removed, doubled or moved."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        out = dict(value)
        action = rng.random()
        if action < 0.1:
            del out[key]
        elif action < 0.15:
            out[key + "x"] = out[key]
        elif action < 0.2:
            out[rng.choice(list(value))] = out[key]
        else:
            out[key] = mutate_json(value[key], rng)
        return out
    if isinstance(value, list) and value and rng.random() < 0.8:
        out_list = list(value)
        at = rng.randrange(len(out_list))
        action = rng.random()
        if action < 0.15:
            del out_list[at]
        elif action < 0.3:
            out_list.insert(at, out_list[at])
        else:
            out_list[at] = mutate_json(out_list[at], rng)
        return out_list
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.5:
        return rng.choice((value + 1, value - 1, value * 2, -value, value + 64, value << 32, value | 1 << 63))
    return rng.choice(NUMBERS) if rng.random() < 0.6 else rng.choice(VALUES)


def mutate_bytes(data: bytes, rng: random.Random, region: int) -> bytes:
    """Return bytes with some of the first ``region`` of them flipped, removed, inserted, doubled or cut off."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not out:
            break
        at = rng.randrange(min(region, len(out)))
        action = rng.random()
        if action < 0.5:
            out[at] ^= 1 << rng.randrange(8)
        elif action < 0.65:
            out[at] = rng.choice((0, 255, 0x7F, 0x80, ord('"'), ord("["), ord("{"), ord("9")))
        elif action < 0.75:
            del out[at : at + rng.choice((1, 8, 64))]
        elif action < 0.85:
            out[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 8, 64))))
        elif action < 0.93:
            out[at : at + 4] = struct.pack("<f", rng.choice((float("nan"), float("inf"), 3e38, -3e38, 0.0)))
        else:
            del out[at:]
    return bytes(out)


def mutate_weights(data: bytes, rng: random.Random) -> bytes:
    """Return a damaged safetensors file: its length field, its header as JSON, or any bytes."""
    (length,) = struct.unpack_from("<Q", data)
    action = rng.random()
    if action < 0.1:
        return (
            struct.pack("<Q", rng.choice((0, 1, 2**31, 2**32, 2**63, 2**64 - 1, length + 1, length - 1, len(data))))
            + data[8:]
        )
    if action < 0.6:
        header = json.loads(data[8 : 8 + length])
        for _ in range(rng.choice((1, 1, 2, 3))):
            header = mutate_json(header, rng)
        text = json.dumps(header).encode()
        text += b" " * (-(8 + len(text)) % 64)
        return struct.pack("<Q", len(text)) + text + data[8 + length :]
    return mutate_bytes(data, rng, 8 + length if action < 0.8 else len(data))


def damage(source: Path, target: Path, rng: random.Random) -> None:
    """Write a copy of ``source`` to ``target`` with one or both files damaged."""
    config, weights = (source / "config.json").read_bytes(), (source / "model.safetensors").read_bytes()
    if rng.random() < 0.5:
        weights = mutate_weights(weights, rng)
    elif rng.random() < 0.7:
        parsed = json.loads(config)
        for _ in range(rng.choice((1, 1, 2, 3))):
            parsed = mutate_json(parsed, rng)
        config = json.dumps(parsed).encode()
    else:
        config = mutate_bytes(config, rng, len(config))
    (target / "config.json").write_bytes(config)
    (target / "model.safetensors").write_bytes(weights)


def mark(directory: Path) -> None:
    """Make a toy a diffusion model."""
    config = json.loads((directory / "config.json").read_text())
    config["wrinklefree"]["dlm"] = {
        "mask_token_id": 5,
        "block_size": 4,
        "token_shift": True,
        "variant": "fast_dllm",
        "clean_half": "causal",
    }
    (directory / "config.json").write_text(json.dumps({**config, "pad_token_id": 6, "eos_token_id": [1, 2]}))


def load_and_run(directory: Path, layout: str, keep_mapped: bool) -> str:
    """Load a directory and compute a few tokens; return what happened."""
    try:
        model = _native.Model.load(str(directory), threads=1, layout=layout, keep_mapped=keep_mapped)
    except (FormatError, InputError) as error:
        assert str(error), "an error without a message"
        return "refused"
    logits = np.empty(model.vocab_size, np.float32)
    tokens = np.arange(min(3, model.context, model.vocab_size), dtype=np.int32)
    model.forward(0, tokens, logits)
    try:
        token = _native.Sampler(model.vocab_size, temperature=1.0).sample(logits)[0]
    except FormatError:
        return "no numbers"
    assert 0 <= token < model.vocab_size and token not in model.banned_tokens
    return choose_in_a_block(model, tokens)


def choose_in_a_block(model: Any, tokens: np.ndarray) -> str:
    """Compute the tokens again as a block; return what happened."""
    count = len(tokens)
    choices = np.empty(count, np.int32), np.empty(count, np.float32), np.empty(count, np.float32)
    try:
        model.forward_batch([0], [tokens], [2], None, starts=[0], blocks=[4], choices=choices)
    except InputError as error:  # windows
        assert str(error), "an error without a message"
        return "ran without blocks"
    assert model.length(0) == count
    assert all(-1 <= token < model.vocab_size and token not in model.banned_tokens for token in choices[0])
    return "ran"


def limit_memory() -> None:
    """Let the process grow by SPARE_BYTES of address space and no more."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE_BYTES, used + SPARE_BYTES))


def run_cases(seed: int, cases: int, seconds: float) -> dict[str, int]:
    """Run up to ``cases`` cases in up to ``seconds``; return how often each thing happened."""
    outcomes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as root:
        sources = [make_toy(Path(root) / name, name) for name in TOYS]
        for source in sources[::2]:
            mark(source)
        target = Path(root) / "damaged"
        target.mkdir()
        end = time.monotonic() + seconds
        case = 0
        while case < cases and time.monotonic() < end:
            rng = random.Random(f"{seed}/{case}")
            damage(rng.choice(sources), target, rng)
            signal.alarm(SECONDS_PER_LOAD)
            try:
                outcome = load_and_run(target, rng.choice(LAYOUTS), rng.random() < 0.5)
            except BaseException:
                print(f"case {case} of seed {seed} failed", file=sys.stderr)
                raise
            signal.alarm(0)
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            case += 1
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--cases", type=int, default=1 << 62)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-memory-limit", action="store_true", help="for address sanitizer builds")
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    if not options.no_memory_limit:
        limit_memory()
    outcomes = run_cases(options.seed, options.cases, options.seconds)
    print(json.dumps({"cases": sum(outcomes.values()), **outcomes}))


if __name__ == "__main__":
    main()
