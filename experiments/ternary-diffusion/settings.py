"""What differs between machines: sizes, rates and budgets of every stage. Everything else is in the stages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """One machine's settings; tokens are tokens of text, also where a token costs two positions.

    ``chat_tokens``: sampled by the original, ``chat_length`` at most in one answer, ``together`` answers at once.
    ``own_tokens``: written by the ternary model. ``docs_characters``: of documentation to train on. ``sequence``:
    tokens. ``..._step``: sequences of a step, ``..._micro_batch`` of them in one forward. ``block``: of the diffusion;
    ``min_ratio``: the least share of a block that is masked. Rates are AdamW's; the full-precision model's is smaller,
    because its weights need not cross a threshold to matter and are good already.
    """

    accelerator: str
    chat_tokens: int
    chat_length: int
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
    own_tokens: int
    drafts_step: int
    drafts_micro_batch: int
    drafts_tokens: int
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
    "smoke": Scale(
        accelerator="cpu", chat_tokens=120, chat_length=24, docs_characters=40_000, held_chats=2, held_docs=2,
        together=6, calibration_tokens=512, sequence=64, ar_step=2, ar_micro_batch=2, ar_tokens=512, dlm_step=1,
        dlm_micro_batch=1, dlm_tokens=384, own_tokens=120, drafts_step=2,
        drafts_micro_batch=2, drafts_tokens=384, save_every=2, measured_tokens=256, greedy_tokens=64,
    ),
    # The dress rehearsal: two threads, about two hours.
    "cpu": Scale(
        accelerator="cpu", chat_tokens=50_000, chat_length=160, docs_characters=1_000_000, held_chats=40, held_docs=12,
        together=48, calibration_tokens=20_480, sequence=256, ar_step=2, ar_micro_batch=2, ar_tokens=81_920, dlm_step=1,
        dlm_micro_batch=1, dlm_tokens=98_304, own_tokens=120_000, drafts_step=4, drafts_micro_batch=4,
        drafts_tokens=131_072, save_every=48, measured_tokens=2048, greedy_tokens=512,
    ),
    # One lent GPU. Steps of 16,384 tokens; chats are made beforehand (they are an input there).
    "gpu": Scale(
        accelerator="cuda", chat_tokens=1_000_000, chat_length=512, docs_characters=60_000_000, held_chats=200,
        held_docs=60, together=256, calibration_tokens=131_072, sequence=512, ar_step=32, ar_micro_batch=32,
        ar_tokens=33_554_432, dlm_step=32, dlm_micro_batch=32, dlm_tokens=100_663_296, own_tokens=2_000_000,
        drafts_step=32, drafts_micro_batch=32, drafts_tokens=33_554_432, save_every=200,
        measured_tokens=32_768, greedy_tokens=8192,
    ),
}  # fmt: skip
