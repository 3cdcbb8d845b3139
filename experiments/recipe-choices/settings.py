"""What a scale is: the model, the sizes of steps and runs, and what is scored."""

from __future__ import annotations

from dataclasses import dataclass

from small_model import Shape


@dataclass(frozen=True)
class Choices:
    """Sizes of the tables about a recipe's choices: ``steps`` of ``micro_batch`` x ``accumulation`` sequences.

    ``calibration``: tokens that the calibrated starts are fitted on. ``adamw``, ``muon``, ``plain``: peak rates that
    are tried, the last for plainly rounded starts under AdamW; ``best``: the one of each that the choices then have.
    ``rest``: AdamW's rate beside Muon, for what is no matrix.
    """

    steps: int
    micro_batch: int
    accumulation: int
    calibration: int
    adamw: tuple[float, ...]
    muon: tuple[float, ...]
    plain: tuple[float, ...]
    best: tuple[float, float, float]
    rest: float


@dataclass(frozen=True)
class Scale:
    """``small``: pretrain this model first, as the teacher of everything; None takes ``model`` as it is.

    A step is ``micro_batch`` x ``accumulation`` sequences of ``sequence`` tokens. ``stage2`` steps of Stage 2 follow
    every Stage 1.9 of ``lengths`` steps; ``longer`` are the lengths of Stage 2 without one. ``warmup``: steps in which
    the strength rises. ``muon``: Muon's peak rates in Stage 1.9 and Stage 2, ``factor`` times those of the recipes;
    ``high``: those of the table of high rates. ``held_out``: tokens of the held-out text that are scored, in windows
    of ``sequence``. ``shapes`` and ``threads``: what the engine's speed is measured of.
    """

    model: str | None
    small: Shape | None
    sequence: int
    micro_batch: int
    accumulation: int
    lengths: tuple[int, ...]
    stage2: int
    longer: tuple[int, ...]
    warmup: int
    muon: tuple[float, float]
    factor: float
    high: tuple[float, ...]
    high_steps: int
    masking_steps: int
    compile_steps: int
    teacher_steps: int
    held_out: int
    shapes: tuple[str, ...]
    threads: tuple[int, ...]
    common: tuple[str, ...]
    choices: Choices

    @property
    def step_tokens(self) -> int:
        return self.micro_batch * self.accumulation * self.sequence


_QUIET = ("log.tracker=none", "log.ternary_every=0", "checkpoint.save_every=null", "budget.total_tokens=null")
_CPU = (*_QUIET, "device.accelerator=cpu", "device.precision=bf16-mixed", "optimizer.muon_dtype=bfloat16")

SCALES = {
    "smoke": Scale(
        model=None, small=Shape(hidden=64, intermediate=128, layers=2, heads=2, kv_heads=1, vocabulary=384),
        sequence=64, micro_batch=2, accumulation=1, lengths=(2,), stage2=6, longer=(6, 8), warmup=2,
        muon=(3e-3, 2.4e-3), factor=1, high=(0.02,), high_steps=3, masking_steps=2, compile_steps=4, teacher_steps=4,
        held_out=256, shapes=("smollm2-135m",), threads=(1,), common=_CPU,
        choices=Choices(
            steps=3, micro_batch=2, accumulation=1, calibration=256, adamw=(5e-4,), muon=(2.4e-3,), plain=(1e-3,),
            best=(5e-4, 2.4e-3, 1e-3), rest=5e-4,
        ),
    ),
    "cpu": Scale(
        model=None, small=Shape(), sequence=128, micro_batch=4, accumulation=1, lengths=(30, 60, 120), stage2=60,
        longer=(60, 90, 120, 180), warmup=30, muon=(9e-3, 7.2e-3), factor=3, high=(0.02, 0.2), high_steps=40,
        masking_steps=20, compile_steps=30, teacher_steps=800, held_out=8192, shapes=("smollm2-135m", "bitnet-2b"),
        threads=(1, 2), common=_CPU,
        choices=Choices(
            steps=24, micro_batch=8, accumulation=1, calibration=1024, adamw=(2e-4, 5e-4, 1e-3, 2e-3, 4e-3),
            muon=(8e-4, 2.4e-3, 7.2e-3, 2.2e-2, 6.5e-2), plain=(5e-4, 1e-3, 2e-3, 4e-3), best=(5e-4, 7.2e-3, 1e-3),
            rest=5e-4,
        ),
    ),
    # The sizes at which the questions were first asked.
    "gpu": Scale(
        model="smollm2-135m-instruct", small=None, sequence=512, micro_batch=32, accumulation=1,
        lengths=(50, 100, 200, 500, 1000), stage2=200, longer=(200, 250, 300, 400, 700, 1200, 1800), warmup=100,
        muon=(3e-3, 2.4e-3), factor=1, high=(0.02, 0.2), high_steps=1000, masking_steps=50, compile_steps=50,
        teacher_steps=0, held_out=65536, shapes=("smollm2-135m", "bitnet-2b"), threads=(1, 2, 4, 8, 16),
        common=(*_QUIET, "device.precision=bf16-mixed"),
        choices=Choices(
            steps=500, micro_batch=32, accumulation=1, calibration=65_536, adamw=(1e-4, 2e-4, 5e-4, 1e-3, 2e-3),
            muon=(3e-4, 8e-4, 2.4e-3, 7.2e-3, 2.2e-2), plain=(5e-4, 1e-3, 2e-3), best=(5e-4, 2.4e-3, 1e-3), rest=5e-4,
        ),
    ),
}  # fmt: skip
