"""The tables as data: which arms each has, and which `wf train` commands an arm is.

A stage is the overrides of one command; the model it starts from (the stage before it, or the teacher) and the seed are
added when it runs. Two arms that begin with the same commands share them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import choices
from arms import Arm, Stage
from settings import Scale

AT_ONCE = ("strength.kind=constant",)
SALIENCY = ("saliency.kind=cosine",)


def stage1_9(scale: Scale, steps: int, *more: str) -> Stage:
    """Stage 1.9 as shipped, in this scale's sizes."""
    return Stage("stage 1.9", ("training=stage1_9_layerwise", *_sizes(scale, steps, scale.muon[0]), *more))


def stage2(scale: Scale, steps: int, *more: str) -> Stage:
    """Stage 2 as shipped, in this scale's sizes; the strength rises as long in a short run as in a long one."""
    own = ("schedule.warmup_tokens=null", "schedule.warmup_ratio=0.05", _strength(scale)[1])
    return Stage("stage 2", ("training=stage2_pretrain", *_sizes(scale, steps, scale.muon[1]), *own, *more))


def stage1_9_length(scale: Scale) -> list[Arm]:
    """Stage 1.9 of several lengths before a Stage 2 that stays; beside it Stage 2 alone, from as long to longer."""
    with_it = [
        Arm(f"{length}+{scale.stage2}", (stage1_9(scale, length), stage2(scale, scale.stage2)),
            {"stage1_9": length, "stage2": scale.stage2})
        for length in scale.lengths
    ]  # fmt: skip
    alone = [Arm(f"0+{n}", (stage2(scale, n),), {"stage1_9": 0, "stage2": n}) for n in scale.longer]
    return with_it + alone


def rates(scale: Scale) -> list[Arm]:
    """Which rate this scale should have: Stage 2 alone at multiples of the recipe's rate, on a seed of its own."""
    arms = []
    for factor in (1, 3, 10):
        rate = factor * scale.muon[1] / scale.factor
        stage = stage2(replace(scale, muon=(scale.muon[0], rate)), scale.stage2)
        arms.append(Arm(f"the recipe's rate x {factor}", (stage,), {"factor": factor, "rate": rate}))
    return arms


def scheduling(scale: Scale) -> list[Arm]:
    """What helps over the shock of ternary weights: rising strength, kept columns, Stage 1.9, and none of them."""
    rises, n = _strength(scale), scale.stage2
    first = {
        "lambda": rises, "lambda + saliency": (*rises, *SALIENCY), "saliency": SALIENCY, "neither": (),
        "lambda in stage 2 only": (),
    }  # fmt: skip
    arms = []
    for name, more in first.items():
        second = stage2(scale, n) if "lambda" in name else stage2_plain(scale, n)
        arms.append(Arm(name, (stage1_9(scale, n, *more), second), {"steps": 2 * n}))
    arms.append(Arm("no stage 1.9, lambda", (stage2(scale, n),), {"steps": n}))
    arms.append(Arm("no stage 1.9, neither", (stage2_plain(scale, n),), {"steps": n}))
    arms.append(Arm("no stage 1.9, lambda, as many steps", (stage2(scale, 2 * n),), {"steps": 2 * n}))
    return arms


def stage2_plain(scale: Scale, steps: int) -> Stage:
    """Stage 2 at full strength from the first step on."""
    kept = tuple(word for word in stage2(scale, steps).overrides if not word.startswith("strength."))
    return Stage("stage 2", (*kept, *AT_ONCE))


def compiling(scale: Scale) -> list[Arm]:
    """torch.compile without and with a teacher; what counts is seconds a step, so nothing is scored."""
    arms = []
    for taught in (False, True):
        for mode in ("none", "default"):
            build = stage1_9 if taught else stage2
            stage = build(scale, scale.compile_steps, f"device.compile={mode}")
            name = f"{'stage 1.9, teacher' if taught else 'stage 2, no teacher'}, {mode}"
            facts: dict[str, float | str | bool | None] = {"taught": taught, "mode": mode}
            arms.append(Arm(name, (Stage(stage.name, stage.overrides, scored=False),), facts))
    return arms


def high_rates(scale: Scale) -> list[Arm]:
    """The full run at high Muon rates, with and without a rising strength.

    Half the sequences of a step, because diffusion computes several positions for each token.
    """
    arms, half = [], replace(scale, micro_batch=max(scale.micro_batch // 2, 1))
    for rate in scale.high:
        for rises in (True, False):
            strength = _strength(half) if rises else AT_ONCE
            overrides = (
                "training=full_run", *_sizes(half, scale.high_steps, rate), "schedule.warmup_tokens=null",
                "schedule.warmup_ratio=0.05", "optimizer.clip_threshold=50", *strength,
            )  # fmt: skip
            name = f"muon_lr {rate:g}, {'strength rises' if rises else 'full strength at once'}"
            arms.append(Arm(name, (Stage("full run", overrides),), {"rate": rate, "rises": rises}))
    return arms


def masking(scale: Scale) -> list[Arm]:
    """An objective on masked tokens at weight 0 must leave next-token training as if it were not there."""
    base = (*stage2_plain(scale, scale.masking_steps).overrides, "strength.end=0")
    arms = {
        "no masked objective": (),
        "masked objective, weight 0": ("objectives.block_diffusion.weight=0",),
        "masked objective, weight 1": ("objectives.block_diffusion.weight=1",),
    }
    return [Arm(name, (Stage("stage 2", (*base, *more)),), {}) for name, more in arms.items()]


def threads(scale: Scale) -> list[Arm]:
    """No training: the engine's speed on random weights of a shape, by threads (`wf bench`)."""
    arms = []
    for shape in scale.shapes:
        words = (
            "--shape", shape, "--threads", ",".join(map(str, scale.threads)), "--prompt", "64", "--decode", "32",
            "--repeat", "3",
        )  # fmt: skip
        arms.append(Arm(shape, (Stage("bench", words, scored=False, verb="bench"),), {}))
    return arms


TABLES: dict[str, Callable[[Scale], list[Arm]]] = {
    "rates": rates,
    "stage1.9-length": stage1_9_length,
    "scheduling": scheduling,
    "masking": masking,
    "high-rates": high_rates,
    "compile": compiling,
    "threads": threads,
    "choice-rates": choices.rates,
    "choices": choices.choices,
}


def _sizes(scale: Scale, steps: int, rate: float) -> tuple[str, ...]:
    return (
        f"budget.max_steps={steps}", f"data.sequence_length={scale.sequence}", f"batch.micro_batch={scale.micro_batch}",
        f"batch.accumulation={scale.accumulation}", f"optimizer.muon_lr={rate:g}", *scale.common,
    )  # fmt: skip


def _strength(scale: Scale) -> tuple[str, str]:
    return "strength.kind=linear", f"strength.warmup_tokens={scale.warmup * scale.step_tokens}"
