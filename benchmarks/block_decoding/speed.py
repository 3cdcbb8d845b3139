"""The same prompts through every way of decoding, interleaved in one process, so that all share the same minutes."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.block_decoding.costs import relative_cost
from benchmarks.block_decoding.prompts import Prompt

from wrinklefree.engine import Engine, SamplingParams
from wrinklefree.engine.decoding_settings import DecodingSettings
from wrinklefree.errors import InputError

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)
SUB_BLOCKS = (4, 16, 32)
TOKENS_PER_FORWARD = (2, 4)
ENTROPY_BOUNDS = (0.1, 0.5)
WINDOWS = (1, 2, 3, 4, 6)
_BETWEEN_BASES = 3  # ways between two runs of AR, with whose mean they are compared
Say = Callable[[str], None]


@dataclass(frozen=True)
class Way:
    """A way of decoding under a name."""

    name: str
    settings: DecodingSettings


def ways(only: Sequence[str] = ()) -> list[Way]:
    """Return all ways, or those whose name begins with one of ``only`` (and ``ar``, which all are compared with)."""
    found = [
        Way("ar", DecodingSettings(mode="ar")),
        *(Way(f"block t={t:g}", DecodingSettings(mode="block", threshold=t)) for t in THRESHOLDS),
        *(Way(f"block t=0.9 sub={s}", DecodingSettings(mode="block", sub_block=s)) for s in SUB_BLOCKS),
        *(Way(f"block n={n}", DecodingSettings(mode="block", tokens_per_forward=n)) for n in TOKENS_PER_FORWARD),
        *(Way(f"block entropy={g:g}", DecodingSettings(mode="block", entropy_bound=g)) for g in ENTROPY_BOUNDS),
        *(Way(f"speculative w={w}", DecodingSettings(mode="speculative", window=w)) for w in WINDOWS),
        Way("speculative auto", DecodingSettings(mode="speculative")),
    ]
    return [way for way in found if not only or way.name == "ar" or any(way.name.startswith(name) for name in only)]


@dataclass
class _Run:
    """All prompts once through one way; ``counted`` tokens took ``seconds``, those of the first passes left out."""

    answers: list[list[int]]
    texts: list[str]
    forwards: int
    counted: int
    seconds: float

    @property
    def speed(self) -> float:
        """Tokens a second; only where ``seconds`` is not 0."""
        return self.counted / self.seconds


def possible(engine: Engine, prompt: Prompt, candidates: Sequence[Way]) -> tuple[list[Way], dict[str, str]]:
    """Return the ways that the model can be decoded in, and of the others why not."""
    fit, refused = [], {}
    for way in candidates:
        try:
            engine.generate(list(prompt.tokens), _greedy(1), decoding=way.settings).run()
            fit.append(way)
        except InputError as error:
            refused[way.name] = str(error)
    return fit, refused


def measure(
    engine: Engine,
    prompts: Sequence[Prompt],
    candidates: Sequence[Way],
    max_tokens: int,
    repeats: int,
    costs: Sequence[dict[str, Any]],
    say: Say,
) -> list[dict[str, Any]]:
    """Return for each way its figures and its answers; ``candidates[0]`` is what the others are compared with.

    It runs again after every few ways, and each is compared with its runs just before and after.

    Greedy; an answer that is not the same in every repeat is an error, because nothing here is random.
    """
    base, others = candidates[0], candidates[1:]
    runs: dict[str, list[_Run]] = {way.name: [] for way in candidates}
    ratios: dict[str, list[float]] = {way.name: [] for way in candidates}
    _run(engine, prompts[:1], base, max_tokens)  # warms up
    for repeat in range(repeats):
        order = others if repeat % 2 == 0 else list(reversed(others))
        before = _run(engine, prompts, base, max_tokens)
        runs[base.name].append(before)
        for at in range(0, len(order), _BETWEEN_BASES):
            say(f"repeat {repeat + 1} of {repeats}: {order[at].name} and what follows")
            group = order[at : at + _BETWEEN_BASES]
            found_now = [_run(engine, prompts, way, max_tokens) for way in group]
            after = _run(engine, prompts, base, max_tokens)
            runs[base.name].append(after)
            for way, run in zip(group, found_now, strict=True):
                runs[way.name].append(run)
                if run.seconds and before.seconds and after.seconds:
                    ratios[way.name].append(2 * run.speed / (before.speed + after.speed))
            before = after
    ratios[base.name] = [1.0]
    found = []
    for way in candidates:
        rows = _rows_of_passes(engine, prompts, way, max_tokens)
        found.append(_figures(way, runs[way.name], ratios[way.name], rows, costs))
    return found


def _greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, top_p=1.0, seed=0)


def _run(engine: Engine, prompts: Sequence[Prompt], way: Way, max_tokens: int) -> _Run:
    run = _Run([], [], 0, 0, 0.0)
    for prompt in prompts:
        answer = engine.generate(list(prompt.tokens), _greedy(max_tokens), decoding=way.settings).run()
        run.answers.append(list(answer.tokens))
        run.texts.append(answer.text)
        run.forwards += answer.forwards
        speed = answer.tokens_per_second
        if speed:
            seconds = answer.seconds - (answer.first_token_seconds or 0.0)
            run.counted += round(speed * seconds)
            run.seconds += seconds
    return run


def _rows_of_passes(engine: Engine, prompts: Sequence[Prompt], way: Way, max_tokens: int) -> Counter[int]:
    """Return how many passes had how many rows, those that hold the prompt left out. Not timed."""
    counts: Counter[int] = Counter()
    for prompt in prompts:
        seen: list[int] = []
        engine.generate(
            list(prompt.tokens), _greedy(max_tokens), decoding=way.settings,
            observer=lambda turn, guesses, seen=seen: seen.append(turn.last - turn.first + 1),  # type: ignore[misc]
        ).run()  # fmt: skip
        counts.update(seen[1:])
    return counts


def _figures(
    way: Way, runs: Sequence[_Run], ratios: list[float], rows: Counter[int], costs: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    if any(run.answers != runs[0].answers for run in runs):
        raise RuntimeError(f"{way.name}: greedy answers differ between repeats")
    speeds = [run.speed for run in runs if run.seconds]
    tokens = sum(map(len, runs[0].answers))
    passes = rows.total()
    cost = sum(relative_cost(costs, number) * count for number, count in rows.items()) / passes if passes else 1.0
    per_forward = tokens / runs[0].forwards
    return {
        "name": way.name, "settings": asdict(way.settings), "tokens": tokens, "forwards": runs[0].forwards,
        "tokens_per_forward": per_forward, "tok_s": statistics.median(speeds) if speeds else None,
        "tok_s_repeats": speeds, "speed_up": statistics.median(ratios) if ratios else None,
        "speed_up_repeats": ratios, "rows": {str(number): count for number, count in sorted(rows.items())},
        "mean_rows": sum(n * count for n, count in rows.items()) / passes if passes else None,
        "mean_pass_cost": cost, "speed_up_by_arithmetic": per_forward / cost,
        "answers": runs[0].answers, "texts": runs[0].texts,
    }  # fmt: skip
