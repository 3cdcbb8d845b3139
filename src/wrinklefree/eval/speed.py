"""Measure the engine's speed beside what this machine can do at most: the function behind ``wf bench``.

Every figure is a median over repeats with the least and the most beside it. The machine's limits are measured in the
same minute: the bandwidth at which all threads read memory, and the rate of the int8 multiply instruction of the
kernels in use on registers alone. A share near one says that the limit is reached, not that the code is good; a
share of bandwidth above one says that a part of the weights stays in the cache from token to token.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from wrinklefree.artifact.config import ModelConfig, parse_config
from wrinklefree.artifact.manifest import open_packed
from wrinklefree.artifact.sources import read_parts
from wrinklefree.engine import Engine
from wrinklefree.engine.held import is_packed
from wrinklefree.engine.native import load_native
from wrinklefree.errors import InputError, unknown_name

READ_BYTES = 512 << 20  # more than any cache
LIMIT_SECONDS = 0.5
BATCH_STEPS = 16
PASS_TOKENS = 256  # the engine feeds more tokens in pieces of this size, each reading the weights once
DECODE_START_TOKENS = 8  # a short prompt, so that decoding is measured and attention is not


def _llama(
    hidden: int, inner: int, layers: int, heads: tuple[int, int, int], vocabulary: int, tied: bool
) -> dict[str, Any]:
    """Return the config.json keys of a Llama; ``heads``: query heads, key-value heads, width of a head."""
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": heads[2],
        "vocab_size": vocabulary,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "max_position_embeddings": 8192,
    }


# Sizes from the models' own config.json; BitNet b1.58 2B-4T: arXiv 2504.12285.
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "bitnet-2b": {**_llama(2560, 6912, 30, (20, 5, 128), 128256, True), "hidden_act": "relu2"},
    "smollm2-135m": _llama(576, 1536, 30, (9, 3, 64), 49152, True),
    "qwen3-0.6b": {**_llama(1024, 3072, 28, (16, 8, 128), 151936, True), "model_type": "qwen3"},
    "llama-3b": _llama(3072, 8192, 28, (24, 8, 128), 128256, True),
    "llama-8b": _llama(4096, 14336, 32, (32, 8, 128), 128256, False),
}

# The scales each shape is measured with: BitNet has one a tensor; narrow models need a finer grain.
_GRANULARITY = {"bitnet-2b": "tensor", "smollm2-135m": "group", "qwen3-0.6b": "group"}


@dataclass(frozen=True)
class SpeedOptions:
    """What to measure. ``block``: tokens of one pass with the logits of all. ``batch``: sequences decoded together,
    one token of each in a pass.

    ``type`` is t2 or t1.6, the bits of a ternary weight; a model is measured as it is stored when it is None.
    ``granularity``, ``group_size`` and ``head`` (q8, q6, q4 or f16) are for shapes; a model has its own. ``kv_type``:
    float16, float32 or int8. ``seconds`` bounds each test: repeats stop when it is used up (two are always made).
    """

    threads: tuple[int, ...] = ()  # empty: one for each physical core
    prompt: int = 512
    decode: int = 128
    batch: tuple[int, ...] = ()
    block: int = 0
    repeat: int = 5
    kernels: str = "auto"
    type: str | None = None
    granularity: str | None = None
    group_size: int = 64
    head: str = "q8"
    kv_type: str = "float16"
    seconds: float = 60.0

    def __post_init__(self) -> None:
        for name, value, least in (
            ("prompt", self.prompt, 0),
            ("decode", self.decode, 0),
            ("block", self.block, 0),
            ("repeat", self.repeat, 1),
            *(("threads", count, 1) for count in self.threads),
            *(("batch", count, 1) for count in self.batch),
        ):
            if value < least:
                raise InputError(f"{name}: found {value}, at least {least} is needed")
        if not (self.prompt or self.decode or self.batch or self.block):
            raise InputError("nothing to measure: prompt, decode, batch and block are all zero")


Progress = Callable[[float, str], None]
"""A function of the share done, from 0 to 1, and of what is going on."""


class _Steps:
    """Counts the steps of a measurement for a progress function."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def next(self, text: str) -> None:
        """Say that the step ``text`` begins."""
        if self._progress is not None:
            self._progress(self._done / self._total, text)
        self._done += 1


@dataclass
class _Limits:
    """What the machine delivers at most with so many threads."""

    read_gb_s: float
    int8_gmac_s: float

    def best(self, other: _Limits) -> _Limits:
        """Return the larger of each limit."""
        return _Limits(max(self.read_gb_s, other.read_gb_s), max(self.int8_gmac_s, other.int8_gmac_s))


@dataclass
class _Subject:
    """A model to measure: how to build its engine for a number of threads, and its sizes."""

    name: str
    config: ModelConfig
    load: Callable[[int], Engine]
    bytes_per_token: int = 0
    int8_head: bool = True
    results: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ternary_params(self) -> int:
        return sum(shape.rows * shape.columns for shape in self.config.linears().values())

    @property
    def head_params(self) -> int:
        return self.config.vocab_size * self.config.hidden_size

    @property
    def params(self) -> int:
        return self.ternary_params + (1 if self.config.tie_word_embeddings else 2) * self.head_params


def measure_speed(
    model: str | Path | None = None,
    shape: str | None = None,
    options: SpeedOptions | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return the JSON object of ``wf bench`` for a packed or ternary model, or one of `SHAPES` with random weights.

    Speeds are tokens a second, rates GB/s (1e9 bytes) of weights read and shares of this machine's limits.

    Raises: InputError for an unknown shape, both or none of model and shape, or an option outside its range;
    what `Engine.load` raises.
    """
    options = options or SpeedOptions()
    context = max(options.prompt, options.decode + DECODE_START_TOKENS, options.block) + 1
    subject = _subject(model, shape, options, context)
    threads = options.threads or (int(load_native().available_cores()),)
    name = _kernels_name(options.kernels)
    tests = sum(bool(wanted) for wanted in (options.prompt, options.decode, options.block)) + len(options.batch)
    steps = _Steps(len(threads) * (3 + tests), progress)
    limits: dict[int, _Limits] = {}
    for count in threads:
        steps.next(f"{subject.name}: loading for {count} threads")
        engine = subject.load(count)
        subject.bytes_per_token = engine.bytes_per_token
        before = _measure_limits(name, count, steps)
        measured = list(_tests(engine, options, steps))
        # Before and after: what other processes take from the memory changes by the second.
        limits[count] = before.best(_measure_limits(name, count, steps))
        subject.results += [_result(test, count, seconds, subject, limits[count]) for test, seconds in measured]
        del engine
    return {
        "machine": _machine(name, limits),
        "model": {
            "name": subject.name,
            "params": subject.params,
            "bytes_per_token": subject.bytes_per_token,
            "bits_per_weight": round(8 * subject.bytes_per_token / subject.params, 3),
        },
        "results": subject.results,
    }


def _kernels_name(wanted: str) -> str:
    try:
        return str(load_native().kernels.select(wanted)[0])
    except ValueError as error:
        raise InputError(f"{error}; use auto, or a name that wf doctor lists") from None


def _subject(model: str | Path | None, shape: str | None, options: SpeedOptions, context: int) -> _Subject:
    if (model is None) == (shape is None):
        raise InputError("give either a packed directory or --shape with one of " + ", ".join(SHAPES))
    slots = max((1, *options.batch))
    if model is not None:
        path = Path(model)
        config, embedding = _sizes(path)

        def load(threads: int) -> Engine:
            return Engine.load(
                path, threads, context, options.kernels, slots, options.kv_type, layout=options.type or "stored"
            )

        return _Subject(path.name, config, load, int8_head=embedding != "f16")
    if shape is None or shape not in SHAPES:
        raise unknown_name("shape", str(shape), SHAPES)
    raw = {**SHAPES[shape], "max_position_embeddings": max(8192, context)}
    granularity = options.granularity or _GRANULARITY.get(shape, "row")

    def random(threads: int) -> Engine:
        return Engine.random(
            raw, granularity, options.group_size, 0, threads, context, options.kernels, slots, options.kv_type,
            layout=options.type or "t2", head=options.head,
        )  # fmt: skip

    return _Subject(shape, parse_config(raw, f"shape {shape}"), random, int8_head=options.head != "f16")


def _sizes(path: Path) -> tuple[ModelConfig, str]:
    """The sizes of a model and the precision of its head. Raises: what its reader raises."""
    if is_packed(path):
        packed = open_packed(path)
        return packed.config, packed.info.embedding
    parts = read_parts(path)
    return parse_config(parts.config, str(path)), parts.info.embedding


def _measure_limits(kernels: str, threads: int, steps: _Steps) -> _Limits:
    native = load_native().kernels
    steps.next(f"machine: what memory and the int8 unit deliver with {threads} threads")
    return _Limits(
        native.read_gb_per_second(threads, READ_BYTES, LIMIT_SECONDS),
        native.int8_gmac_per_second(kernels, threads, LIMIT_SECONDS),
    )


def _machine(kernels: str, limits: Mapping[int, _Limits]) -> dict[str, Any]:
    most = max(limits)
    return {
        "cpu": load_native().kernels.cpu_name(),
        "isa": kernels,
        "threads": most,
        "read_gb_s": round(limits[most].read_gb_s, 2),
        "int8_gops": round(2 * limits[most].int8_gmac_s, 1),  # a multiply and an add count as two
    }


@dataclass(frozen=True)
class _Test:
    """One thing measured: its name, the tokens one repeat handles, of how many of them logits are computed, and the
    passes over the weights it takes."""

    name: str
    tokens: int
    logits: int
    passes: int
    once: Callable[[], float]


def _tests(engine: Engine, options: SpeedOptions, steps: _Steps) -> Iterator[tuple[_Test, list[float]]]:
    tests = []
    if count := options.prompt:
        passes = -(-count // PASS_TOKENS)
        tests.append(_Test(f"prompt{count}", count, 1, passes, partial(engine.prefill_seconds, count)))
    if count := options.decode:
        decode = partial(engine.decode_seconds, count, DECODE_START_TOKENS)
        tests.append(_Test(f"decode{count}", count, count, count, decode))
    if count := options.block:
        passes = -(-count // PASS_TOKENS)
        tests.append(_Test(f"block{count}", count, count, passes, partial(engine.pass_seconds, count)))
    for count in options.batch:
        each = max(1, min(BATCH_STEPS, options.decode))
        together = partial(engine.batch_decode_seconds, count, each, DECODE_START_TOKENS)
        passes = each * -(-count // PASS_TOKENS)
        tests.append(_Test(f"batch{count}", count * each, count * each, passes, together))
    for test in tests:
        steps.next(f"{test.name}: {options.repeat} repeats with {engine.threads} threads")
        yield test, _repeat(test.once, options)


def _repeat(once: Callable[[], float], options: SpeedOptions) -> list[float]:
    once()  # pages in, caches warm, clocks up
    start = perf_counter()
    seconds: list[float] = []
    while len(seconds) < options.repeat and (len(seconds) < 2 or perf_counter() - start < options.seconds):
        seconds.append(once())
    return seconds


def _result(test: _Test, threads: int, seconds: Sequence[float], subject: _Subject, limits: _Limits) -> dict[str, Any]:
    speeds = [test.tokens / value for value in seconds]
    median = statistics.median(speeds)
    gb_s = subject.bytes_per_token * test.passes * median / test.tokens * 1e-9
    # Activations of a quantised head have 15 bits, two int8 products; a float16 head takes none.
    head = 2 * subject.head_params * test.logits / test.tokens if subject.int8_head else 0
    gmac_s = (subject.ternary_params + head) * median * 1e-9
    return {
        "test": test.name,
        "threads": threads,
        "tok_s": {"median": round(median, 2), "min": round(min(speeds), 2), "max": round(max(speeds), 2)},
        "gb_s": round(gb_s, 3),
        "bandwidth_share": round(gb_s / limits.read_gb_s, 4),
        "compute_share": round(gmac_s / limits.int8_gmac_s, 4),
    }
