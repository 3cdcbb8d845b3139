"""What a recipe for a ternary student that follows its original should choose: arms that differ in one thing.

The recipe they differ from: a calibrated start with one scale for each 64 columns and no SubLN, the teacher's logits
alone, AdamW at the best of the rates tried, full strength from the first step on. Arms of a seed share its text.
"""

from __future__ import annotations

from arms import Arm, Stage
from settings import Scale

BASE = "the recipe"
_RISES = ("strength.kind=linear", "strength.warmup_ratio=0.33")
_RELATION = (
    "objectives.attention_relation={weight: 1.0, form: cosine, balance: {kind: gradient, target: 0.35, every: 5}}"
)


def rates(scale: Scale) -> list[Arm]:
    """Peak rates of AdamW and Muon from a calibrated start, and of AdamW from a plainly rounded one."""
    sizes = scale.choices
    arms = [_arm(f"AdamW {rate:g}", _calibrated(scale), (_kd(scale, adamw=rate),), rate=rate, of="AdamW")
            for rate in sizes.adamw]  # fmt: skip
    arms += [_arm(f"Muon {rate:g}", _calibrated(scale), (_kd(scale, muon=rate),), rate=rate, of="Muon")
             for rate in sizes.muon]  # fmt: skip
    plain = "AdamW, plain rounding"
    arms += [_arm(f"{plain} {rate:g}", (), (_kd(scale, *_PLAIN, adamw=rate),), rate=rate, of=plain)
             for rate in sizes.plain]  # fmt: skip
    return arms


def choices(scale: Scale) -> list[Arm]:
    """The recipe, and beside it what else could have been chosen."""
    _, muon, plain = scale.choices.best

    def arm(question: str, name: str, *more: str, scales: str = "group", subln: str = "none") -> Arm:
        start = _calibrated(scale, scales, subln)
        return _arm(name, start, (_kd(scale, *more),), question=question, against=BASE)

    calibrated, follows = _calibrated(scale), "objectives.logits_kd.weight="
    muons = (_kd(scale, muon=muon),)
    rounded, rising = (_kd(scale, *_PLAIN, *more, adamw=plain) for more in ((), _RISES))
    return [
        arm("", BASE),
        arm("objective", "labels alone (CE)", f"{follows}0", "objectives.next_token.weight=1"),
        arm("objective", "half labels, half teacher", f"{follows}0.5", "objectives.next_token.weight=0.5"),
        _arm("plain rounding", (), (rounded,), question="start", against=BASE),
        _arm("Muon", calibrated, muons, question="optimizer", against=BASE),
        arm("scales", "one scale a row", scales="row"),
        arm("scales", "one scale a tensor", scales="tensor"),
        arm("SubLN", "SubLN, identity", subln="identity"),
        arm("SubLN", "SubLN, ones", subln="ones"),
        arm("attention relation", "with attention relations", _RELATION),
        _arm("plain rounding, strength rises", (), (rising,), question="strength", against="plain rounding"),
        arm("strength", "strength rises", *_RISES),
    ]


_PLAIN = ("model.granularity=group", "model.subln=none")


def _calibrated(scale: Scale, scales: str = "group", subln: str = "none") -> tuple[Stage, ...]:
    words = ("--tokens", str(scale.choices.calibration), "--scale", scales, "--subln", subln)
    return (Stage("calibration", words, verb="convert", taught=True),)


def _kd(scale: Scale, *more: str, adamw: float | None = None, muon: float | None = None) -> Stage:
    """Distillation at ``adamw``'s peak rate (None: the best), or with Muon for the matrices."""
    sizes = scale.choices
    if muon is None:
        kind = ("optimizer=adamw", f"optimizer.lr={adamw or sizes.best[0]:g}")
        common = tuple(word for word in scale.common if "muon" not in word)
    else:
        kind, common = ("optimizer=muon", f"optimizer.muon_lr={muon:g}", f"optimizer.lr={sizes.rest:g}"), scale.common
    words = (
        "training=logits_only", f"budget.max_steps={sizes.steps}", f"data.sequence_length={scale.sequence}",
        f"batch.micro_batch={sizes.micro_batch}", f"batch.accumulation={sizes.accumulation}", *kind,
        "optimizer.scale_lr=0.3", "optimizer.norm_lr=3", "optimizer.weight_decay=0", "schedule.warmup_ratio=0.2",
        "schedule.decay_ratio=0.4", "strength.kind=constant", *common,
    )  # fmt: skip
    kinds = {word.partition("=")[0] for word in more}
    return Stage("distillation", (*(w for w in words if w.partition("=")[0] not in kinds), *more), taught=True)


def _arm(name: str, start: tuple[Stage, ...], stages: tuple[Stage, ...], **facts: float | str | bool | None) -> Arm:
    return Arm(name, (*start, *stages), facts)
