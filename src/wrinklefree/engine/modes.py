"""Which decoder answers a request: what was asked for, and what the model was trained for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.diffusion_marker import AttentionRule, DiffusionMarker
from wrinklefree.engine.autoregressive import TokenByToken
from wrinklefree.engine.block_decoding import BlockDecoder, Sampling
from wrinklefree.engine.constraint import Constraint
from wrinklefree.engine.decoding import Decoder
from wrinklefree.engine.decoding_settings import DecodingSettings
from wrinklefree.engine.native import load_native
from wrinklefree.engine.prompt_scores import ScoredPrompt
from wrinklefree.engine.sampling import SamplingParams
from wrinklefree.engine.self_speculation import SelfSpeculation
from wrinklefree.engine.windows import FixedWindow, MeasuredWindow, Window, promises_gain
from wrinklefree.errors import InputError

if TYPE_CHECKING:
    from wrinklefree.engine.engine import Engine


@dataclass(frozen=True)
class Plan:
    """``mode``: the real one. ``limit``: tokens that may be generated, within max_tokens and the context."""

    mode: str
    decoder: Decoder
    limit: int


def plan_decoding(
    engine: Engine,
    prompt: NDArray[np.int32],
    params: SamplingParams,
    settings: DecodingSettings,
    ends: frozenset[int],
    constraint: Constraint | None = None,
    greedy_window: Callable[[], Window] | None = None,
) -> Plan:
    """Return the decoder of an answer to ``prompt`` int32 [T].

    ``greedy_window``: gives the automatic window of answers that draw nothing; None: each has its own.

    Raises: InputError for a mode that the model was not trained for or that knows no constraints, for a biased token
    outside the vocabulary, and for a prompt that leaves no position.
    """
    marker = read_marker(engine.config)
    scored = params.prompt_logprobs
    if scored is not None and settings.mode not in ("auto", "ar"):
        raise InputError(f"mode {settings.mode}: prompt_logprobs are those of decoding token by token; "
                         "use mode ar or auto")  # fmt: skip
    mode = choose_mode(marker, settings, engine.row_costs, constrained=constraint is not None or scored is not None)
    if marker is not None and mode != "ar" and marker.mask_token_id in prompt:
        raise InputError(f"prompt: found the MASK token {marker.mask_token_id}, which stands for an open position; "
                         "remove it")  # fmt: skip
    sampler = _make_sampler(engine, params)
    plain = params.temperature == 0 and not params.moves_logits
    if mode == "ar":
        room = engine.context - len(prompt) + 1  # the last token needs no position of its own
        decoder: Decoder = TokenByToken(prompt, sampler, params.logprobs, constraint, plain and scored is None)
        if scored is not None:
            decoder = ScoredPrompt(decoder, prompt, scored, engine._model)
        return Plan(mode, decoder, min(params.max_tokens, room))
    assert marker is not None
    if mode == "speculative":
        limit = min(params.max_tokens, engine.context - len(prompt) + 1)
        # The window never changes a greedy text; what is drawn under a seed must not depend on who else is there.
        window: Window
        if settings.window is not None:
            window = FixedWindow(settings.window)
        elif params.temperature == 0 and greedy_window is not None:
            window = greedy_window()
        else:
            window = MeasuredWindow(engine.row_costs())
        speculation = SelfSpeculation(
            prompt, sampler, marker.mask_token_id, window, engine.context, limit, params.logprobs, plain
        )
        return Plan(mode, speculation, limit)
    return _plan_blocks(engine, marker, prompt, params, settings, ends, sampler)


def _make_sampler(engine: Engine, params: SamplingParams) -> Any:
    bias = tuple(dict(params.logit_bias).items())
    beyond = [token for token, _ in bias if token >= engine.vocab_size]
    if beyond:
        raise InputError(f"logit_bias: found token {beyond[0]}, allowed are 0 to {engine.vocab_size - 1}")
    return load_native().Sampler(
        engine.vocab_size,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        bias=bias,
        seed=params.seed,
    )


def _plan_blocks(
    engine: Engine,
    marker: DiffusionMarker,
    prompt: NDArray[np.int32],
    params: SamplingParams,
    settings: DecodingSettings,
    ends: frozenset[int],
    sampler: Any,
) -> Plan:
    _check_blocks(engine, marker)
    size = marker.block_size
    assert size is not None
    if settings.sub_block is not None and settings.sub_block > size:
        raise InputError(f"sub_block: found {settings.sub_block}, this model's blocks have {size} positions")
    room = engine.context // size * size - len(prompt)
    if room < 1:
        raise InputError(
            f"prompt: {len(prompt)} tokens fill the {engine.context // size} whole blocks of {size} positions that the "
            f"context of {engine.context} has; shorten it or load the model with a larger context"
        )
    limit = min(params.max_tokens, room)
    plain = params.temperature == 0 and not params.moves_logits and params.logprobs is None
    choice = None if plain else Sampling(sampler, params.logprobs)
    return Plan("block", BlockDecoder(marker, prompt, limit, settings, ends, choice), limit)


def _check_blocks(engine: Engine, marker: DiffusionMarker) -> None:
    size = marker.block_size
    assert size is not None
    if engine._model.has_windows and (marker.variant != "causal" or marker.clean_half != "causal"):
        raise InputError("mode block: this model has layers with a sliding window, which have no rule for blocks that "
                         "look ahead; use mode ar, or train with variant causal")  # fmt: skip
    if size > engine._model.pass_rows:
        raise InputError(f"mode block: this model's blocks of {size} positions do not fit into a pass, which has "
                         f"{engine._model.pass_rows} rows; use mode ar")  # fmt: skip


def possible_modes(engine: Engine) -> tuple[str, ...]:
    """Return the modes that an answer of this model may ask for, auto apart; ``ar`` is the first."""
    marker = read_marker(engine.config)
    found = ["ar"]
    for mode in ("block", "speculative"):
        try:
            choose_mode(marker, DecodingSettings(mode=mode), engine.row_costs)
            if mode == "block":
                assert marker is not None
                _check_blocks(engine, marker)
        except InputError:
            continue
        found.append(mode)
    return tuple(found)


def read_marker(config: Any) -> DiffusionMarker | None:
    """Return the checked marker of a config.json; None for a model that was not trained for diffusion.

    Raises: InputError for a marker that is damaged.
    """
    packing = config.get("wrinklefree")
    raw = packing.get("dlm") if isinstance(packing, dict) else None
    return None if raw is None else DiffusionMarker.of(raw, "config.json")


def choose_mode(
    marker: DiffusionMarker | None,
    settings: DecodingSettings,
    row_costs: Callable[[], NDArray[np.float64]],
    constrained: bool = False,
) -> str:
    """Return ar, block or speculative; ``row_costs`` as `Engine.row_costs`, called where the choice depends on it.

    ``constrained``: a constraint says which tokens may follow, one after the other.

    Raises: InputError when the model cannot do what was asked for.
    """
    mode = settings.mode
    if constrained and mode not in ("auto", "ar"):
        raise InputError(f"mode {mode}: an answer with a constraint (grammar, schema) is decoded in mode ar; "
                         "use mode ar or auto")  # fmt: skip
    if constrained:
        return "ar"
    if mode == "auto":
        if marker is None:
            return "ar"
        if marker.variant == "causal":
            return "speculative" if verifies_itself(marker) and promises_gain(row_costs()) else "ar"
        mode = "block"
    if mode == "ar":
        return mode
    if marker is None:
        raise InputError(f"mode {mode}: this model was not trained for block diffusion (no dlm marker); use mode ar")
    if mode == "speculative":
        _check_speculative(marker)
    elif marker.block_size is None:
        raise InputError("mode block: this model was trained with documents as one block (block_size null), for which "
                         "the engine has no cache; train it with a block_size, or use mode ar")  # fmt: skip
    return mode


def _check_speculative(marker: DiffusionMarker) -> None:
    if not verifies_itself(marker):
        shift = "on" if marker.token_shift else "off"
        raise InputError(
            "mode speculative: needs variant causal with a causal clean half and token shift; this one is of "
            f"variant {marker.variant}, clean half {marker.clean_half}, token shift {shift}; use mode block or ar"
        )


def verifies_itself(marker: DiffusionMarker) -> bool:
    """Return whether the model can decode speculatively: its states before a token do not hang on what follows."""
    return marker.rule == AttentionRule("causal", "causal") and marker.token_shift
