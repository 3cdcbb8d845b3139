"""What differs between machines: sizes, rates and budgets of every stage. Everything else is in the stages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """One machine's settings; tokens are tokens of text, also where a token costs two positions.

    ``chat_tokens``: sampled by the original. ``docs_characters``: of documentation to train on. ``sequence``: tokens.
    ``step``: sequences of a step, ``micro_batch`` of them in one forward. ``block``: of the diffusion; ``min_ratio``:
    the least share of a block that is masked. Rates are AdamW's; the full-precision model's is smaller, because its
    weights need not cross a threshold to matter and are good already.
    """

    accelerator: str
    chat_tokens: int
    docs_characters: int
    held_chats: int
    held_docs: int
    together: int
    calibration_tokens: int
    sequence: int
    ar_step: int
    ar_micro_batch: int
    ar_tokens: int
    dlm_step: int
    dlm_micro_batch: int
    dlm_tokens: int
    save_every: int
    measured_tokens: int
    greedy_tokens: int
    block: int = 4
    min_ratio: float = 0.7
    rate: float = 3e-4
    full_rate: float = 1e-4
    seed: int = 0


SCALES = {
    # Minutes: does the command run, stop, resume and report? The figures mean nothing.
    "smoke": Scale("cpu", 200, 60_000, 4, 2, 8, 512, 64, 2, 2, 512, 1, 1, 384, 2, 256, 64),
    # The dress rehearsal: two threads, about two hours.
    "cpu": Scale("cpu", 50_000, 1_000_000, 40, 12, 48, 20_480, 256, 2, 2, 81_920, 1, 1, 98_304, 48, 2048, 512),
    # One lent GPU. Steps of 16,384 tokens; chats are made beforehand (they are an input there).
    "gpu": Scale(
        "cuda", 1_000_000, 60_000_000, 200, 60, 256, 131_072, 512, 32, 32, 33_554_432, 32, 32, 100_663_296, 200,
        32_768, 8192,
    ),
}  # fmt: skip
