"""From the fields of a request to what the engine's thread is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar, cast

import numpy as np
from fastapi import Request
from numpy.typing import NDArray

from wrinklefree.engine import Constraint, DecodingSettings, SamplingParams
from wrinklefree.engine.decoding_settings import Mode
from wrinklefree.engine.modes import read_marker, verifies_itself
from wrinklefree.server.errors import ApiError
from wrinklefree.server.grammar import Rule
from wrinklefree.server.schemas.fields import Generating, RequestBody
from wrinklefree.server.state import ServerState
from wrinklefree.server.work import Ticket, Work

MAX_SCORES = 1 << 20  # about 50 MB of JSON
_SEEDS = 1 << 64
_T = TypeVar("_T")


def check_model(state: ServerState, body: RequestBody, model: str | None) -> None:
    """Refuse another model's name and unknown fields. Raises: ApiError."""
    body.check_unknown(state.settings.ignore_unknown)
    if model is not None and model != state.settings.model_id:
        message = f"model: found {model[:200]!r}, this server has {state.settings.model_id!r}"
        raise ApiError(404, message, "not_found_error", "model", "model_not_found")


def check_body(state: ServerState, body: Generating) -> None:
    """Refuse another model's name, unknown fields, too many choices, and all when the queue is full.

    That comes before the prompt is made into tokens: a flood must not cost the answers under way. Raises: ApiError.
    """
    check_model(state, body, body.model)
    if (body.n or 1) > state.settings.max_choices:
        raise ApiError(400, f"n: found {body.n}, this server gives at most {state.settings.max_choices}", param="n")
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options: only for stream true", param="stream_options")
    if body.watch and not body.stream:
        raise ApiError(400, "watch: passes are shown in a stream; set stream true", param="watch")
    state.scheduler.check_room()


def sampling(body: Generating, max_tokens: int) -> SamplingParams:
    """Return the engine's parameters; OpenAI's defaults where the request is silent. Raises: InputError."""
    stop = body.stop or ()
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=_given(body.temperature, 1.0),
        top_k=_given(body.top_k, 0),
        top_p=_given(body.top_p, 1.0),
        min_p=_given(body.min_p, 0.0),
        repetition_penalty=_given(body.repetition_penalty, 1.0),
        presence_penalty=_given(body.presence_penalty, 0.0),
        frequency_penalty=_given(body.frequency_penalty, 0.0),
        logit_bias={int(token): bias for token, bias in (body.logit_bias or {}).items()},
        seed=None if body.seed is None else body.seed % _SEEDS,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stop_tokens=tuple(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
        logprobs=body.top_scores,
    ).with_seed()


def decoding(state: ServerState, body: Generating) -> DecodingSettings:
    """Return how tokens are decided; the server's own mode where the request is silent. Raises: InputError."""
    mode = cast(Mode, _given(body.mode, state.settings.mode))
    # What is drawn under a seed depends on the window, and the automatic one on measured times: drawn answers of
    # mode auto are decoded token by token, so that their seed gives them again. A greedy text has no such choice.
    if mode == "auto" and body.window is None and _given(body.temperature, 1.0) > 0:
        marker = read_marker(state.engine.config)
        if marker is not None and verifies_itself(marker):
            mode = "ar"
    return DecodingSettings(
        mode=mode,
        threshold=_given(body.threshold, 0.9),
        tokens_per_forward=body.tokens_per_forward,
        entropy_bound=body.entropy_bound,
        sub_block=body.sub_block,
        window=body.window,
    )


def check_scores(state: ServerState, body: Generating, prompts: Sequence[NDArray[np.int32]], max_tokens: int) -> None:
    """Refuse log-probabilities that are too many to be held and sent. Raises: ApiError."""
    if body.top_scores is None:
        return
    context, echo = state.engine.context, bool(getattr(body, "echo", False))
    tokens = sum(min(max_tokens, context - len(prompt) + 1) + len(prompt) * echo for prompt in prompts)
    wanted = tokens * (body.n or 1) * (body.top_scores + 1)
    if wanted > MAX_SCORES:
        message = f"logprobs: {wanted} of them may be asked for here, at most {MAX_SCORES} are given; ask for fewer"
        raise ApiError(400, f"{message} at each token, or give max_tokens", param="logprobs")


async def constraints(state: ServerState, body: Generating, rule: Rule | None, prompts: int) -> list[Constraint]:
    """Return what keeps each of the ``n`` answers to so many prompts to a rule; none for no rule. Raises: ApiError."""
    if rule is None:
        return []
    if body.mode not in (None, "auto", "ar"):
        message = f"mode: found {body.mode!r}, but {rule.field} needs mode ar or auto"
        raise ApiError(400, message, param="mode")
    return list(await state.grammars.compile(rule, prompts * (body.n or 1)))


def submit(
    state: ServerState,
    request: Request,
    body: Generating,
    prompts: list[NDArray[np.int32]],
    params: SamplingParams,
    kept_to: Sequence[Constraint] = (),
) -> list[Ticket]:
    """Hand in ``n`` answers to each prompt, those of a prompt beside each other. All or none are taken.

    ``kept_to``: what `constraints` returned. Raises: ApiError, InputError.
    """
    settings, client = decoding(state, body), client_of(request)
    wanted, room = len(prompts) * (body.n or 1), state.settings.slots + state.settings.queue
    if wanted > room:
        message = f"prompt: {wanted} answers in one request are more than the {room} that the server can hold; ask for "
        raise ApiError(400, message + "fewer at a time", param="prompt", code="too_many_answers")
    if kept_to or (params.prompt_logprobs is not None and body.mode is None):
        settings = replace(settings, mode="ar")  # the only one for both; other wishes of the request are refused
    left = iter(kept_to)
    assert params.seed is not None
    tickets: list[Ticket] = []
    try:
        for prompt in prompts:
            for choice in range(body.n or 1):
                seeded = replace(params, seed=(params.seed + choice) % _SEEDS)
                tickets.append(
                    state.scheduler.submit(Work(prompt, seeded, settings, client, bool(body.watch), next(left, None)))
                )
    except BaseException:
        for ticket in tickets:
            ticket.cancel()
        raise
    return tickets


def client_of(request: Request) -> str:
    """Return whom a fair order treats as one: the name of the key, else the address."""
    named = request.scope.get("wrinklefree.client")
    if isinstance(named, str):
        return named
    return request.client.host if request.client is not None else ""


def _given(found: _T | None, otherwise: _T) -> _T:
    return otherwise if found is None else found
