"""What the original model makes of the answers, how like AR's they are, and how many small tasks come out right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.block_decoding.prompts import Prompt
from benchmarks.block_decoding.speed import Way

from wrinklefree.engine import Engine, SamplingParams
from wrinklefree.eval.exact_tasks import ExactTask, shares_right
from wrinklefree.eval.opening import open_scorer
from wrinklefree.eval.quality import Answer, likeness, text_quality


def right_answers(
    engine: Engine,
    tasks: Sequence[ExactTask],
    prompts: Sequence[Prompt],
    ways: Sequence[Way],
    max_tokens: int,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Return for each way the share of right answers of each kind of task, and the passes it took."""
    found = []
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0, top_p=1.0, seed=0)
    for way in ways:
        say(f"tasks: {way.name}")
        answers = [engine.generate(list(prompt.tokens), params, decoding=way.settings).run() for prompt in prompts]
        found.append({
            "name": way.name, "right": shares_right(tasks, [answer.text for answer in answers]),
            "tokens": sum(len(answer.tokens) for answer in answers),
            "forwards": sum(answer.forwards for answer in answers),
            "texts": [answer.text for answer in answers],
        })  # fmt: skip
    return found


def add(record: dict[str, Any], original: str) -> None:
    """Put ``quality`` and ``like_ar`` into each way of a record's speed step; equal answers are read once."""
    prompts = [tuple(prompt["tokens"]) for prompt in record["prompts"]]
    done: dict[str, dict[str, Any]] = {}
    ways = record["speed"]["ways"]
    base = _answers(prompts, ways[0])
    with open_scorer(original) as teacher:
        for way in ways:
            answers = _answers(prompts, way)
            key = str(way["answers"])
            if key not in done:
                done[key] = text_quality(answers, teacher.logits).to_json()
            way["quality"] = done[key]
            way["like_ar"] = likeness(answers, base).to_json()
    record["original"] = original.rsplit("/", 1)[-1]


def _answers(prompts: Sequence[tuple[int, ...]], way: dict[str, Any]) -> list[Answer]:
    return [Answer(prompt, tuple(tokens)) for prompt, tokens in zip(prompts, way["answers"], strict=True)]
