"""The modules of experiments/smollm2-135m for tests, and a WORK full of invented figures."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parents[2] / "experiments" / "smollm2-135m"
KINDS = ("chat", "docs", "novel")


@contextmanager
def modules(*names: str) -> Iterator[dict[str, ModuleType]]:
    """Give modules of the directory; other experiments have modules of the same names."""
    own = {path.stem for path in HERE.glob("*.py")}
    kept = {name: sys.modules.pop(name) for name in own if name in sys.modules}
    sys.path.insert(0, str(HERE))
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(HERE))
        for name in own:
            sys.modules.pop(name, None)
        sys.modules.update(kept)


def loss(nats: float, counts: tuple[int, ...] = (100, 300)) -> dict[str, Any]:
    """A loss of ``nats`` a token, a tenth more on the first document."""
    tokens = sum(counts)
    sums = [nats * count for count in counts]
    sums[0] += 0.1 * counts[0]
    sums[1] -= 0.1 * counts[0]
    return {"loss": nats, "standard_error": 0.05, "perplexity": 2.718281828459045**nats, "bits_per_byte": nats / 3,
            "top1": 0.5, "tokens": tokens, "documents": len(counts), "window": 512, "runs_on": "engine", "how": {},
            "sums": sums, "counts": list(counts)}  # fmt: skip


def work_of_figures(measured: dict[str, ModuleType], work: Path, packed: Path, apart: float) -> Any:
    """Write the figures of a run whose final model has ``apart`` nats more loss than its teacher; return `Figures`."""
    store = measured["figure_store"].FigureStore(work / "figures")

    def put(name: str, value: Any) -> None:
        store.put(name, {}, value, 1.0)

    names = ("calibrated-group", "blocks")
    hashes = {"calibrated-group": "0", "blocks": measured["figure_store"].model_hash(packed)}
    models = [{"name": name, "sha256": hashes[name], "path": str(packed)} for name in names]
    put("models", {"teacher": {}, "delivered": "blocks", "kinds": list(KINDS), "quick": False, "models": models})
    for kind in KINDS:
        put(f"loss-teacher-{kind}", loss(2.0))
        put(f"loss-calibrated-group-{kind}", loss(2.0 + 2 * apart))
        put(f"loss-blocks-{kind}", loss(2.0 + apart * (2 if kind == "novel" else 1)))
        alike = {"kl": 0.4, "kl_error": 0.01, "top1": 0.625, "top1_error": 0.1, "flips": 0.1, "flips_error": 0.1}
        put(f"agreement-blocks-{kind}", {"tokens": 50, "documents": 2, "window": 256, **alike})
        put(f"bound-blocks-{kind}", {"loss": 3.25, "standard_error": 0.02})
    put("torch-blocks-docs", loss(2.31))
    put("engine-blocks-docs", loss(2.32))
    for name in ("teacher", "blocks"):
        answers = [{"kind": "fact", "text": "Why?", "answer": f"{name} says so", "cut": name == "blocks"}]
        put(f"answers-{name}", answers)
        metrics = {"acc": {"value": 0.25, "standard_error": 0.04}}
        put(
            f"tasks-{name}",
            {"results": {"exact_choice": {"metrics": metrics, "primary": "acc", "documents": 100, "of": 100}}},
        )
    put("tasks-missing", {"avg-5": {"tasks": ["piqa", "arc_easy"], "why": "no data"}})
    for threads, speed_up in ((1, 1.6), (2, 1.25)):
        judged = {"like_ar": {"equal": 0.5}, "quality": {"teacher_loss": 1.5, "teacher_first": 0.7, "repeated_4": 0.1}}
        ways = [
            {
                "name": "ar",
                "tok_s": 400.0,
                "speed_up": 1.0,
                "tokens_per_forward": 1.0,
                "like_ar": {"equal": 1.0},
                "quality": {"teacher_loss": 1.25, "teacher_first": 0.8, "repeated_4": 0.1},
            },
            {"name": "block t=0.9", "tok_s": 300.0, "speed_up": 0.75, "tokens_per_forward": 1.1, **judged},
            {"name": "block n=2", "tok_s": 500.0, "speed_up": speed_up, "tokens_per_forward": 2.0, **judged},
            {"name": "speculative w=1", "tok_s": 600.0, "speed_up": 1.4, "tokens_per_forward": 1.7, **judged},
        ]
        put(f"speed-{threads}-threads", {
            "machine": {"cpu": "a processor", "kernels": "avx", "threads": threads}, "max_tokens": 128, "repeats": 3,
            "prompts": 8, "refused": [], "costs": [], "ways": ways if threads == 2 else [
                {k: v for k, v in way.items() if k not in ("like_ar", "quality")} for way in ways]})  # fmt: skip
    (work / "blocks").mkdir(parents=True)
    rows = [{"tokens": 100.0 * n, "clean_half_kd/value": 1.0 / n, "next_token/ce": 3.0 / n} for n in range(1, 9)]
    (work / "blocks" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {"stage": "causal_diffusion", "tokens": 12_345, "seconds": 600.0, "identity": "abc"}
    (work / "blocks" / "summary.json").write_text(json.dumps(summary))
    (work / "blocks" / "recipe.yaml").write_text("model:\n  source: x\nseed: 7\n")
    line = {"stage": "calibrated-group", "command": "wf convert /some/where/m.gguf /w/out --tokens 9", "tokens": "9"}
    (work / "stages.jsonl").write_text(json.dumps(line) + "\n")
    return measured["card_figures"].Figures(work)
