"""Everything a server can be told, with its defaults: what `wf serve` passes on and tests change."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerSettings:
    """The limits and promises of one server. Sizes in bytes, times in seconds.

    ``model_id``: the one name that requests may give. ``slots``: answers computed at a time. ``queue``: answers that
    may wait for a slot; the next one is refused with 429. ``request_seconds``: the most for an answer from its arrival
    on; ``queue_seconds``: of that, waiting for a slot. ``drain_seconds``: how long running answers may go on after the
    order to stop. ``max_choices``: of a prompt, ``max_prompts``: of a request. ``keep_alive_seconds``: of silence in a
    stream, before a comment is sent. ``mode``: of requests that name none. ``ignore_unknown``: request fields that
    nobody knows are no error.

    Who may ask: ``api_keys``, none of them for everybody; ``cors_origins``, pages that may call the API ("*": all);
    ``hosts``, the names that the Host header may give (none: any). ``trusted_proxies``: addresses whose X-Forwarded-For
    says who asks.

    What a connection may hold: ``header_seconds`` until a request's headers have come, ``body_seconds`` until its body
    has, ``write_seconds`` for a reader to make room, ``idle_connection_seconds`` between two requests.

    Scheduling: ``reader_seconds``: how long what was computed may wait for a client that does not read; what was taken
    in, queue included, may go on for ``drain_seconds``. ``prefill_tokens``: about the most of prompts in a pass,
    ``prefill_tokens_beside``: in one that answers under way share. ``cached_prompts``: slots that the engine should
    have beyond ``slots``, for what free ones hold of earlier prompts.
    """

    model_id: str
    slots: int = 4
    queue: int = 64
    request_seconds: float = 600.0
    queue_seconds: float = 60.0
    reader_seconds: float = 30.0
    prefill_tokens: int = 256
    prefill_tokens_beside: int = 32
    cached_prompts: int = 4
    drain_seconds: float = 30.0
    max_choices: int = 8
    max_prompts: int = 256
    max_body_bytes: int = 2 << 20
    max_json_depth: int = 64
    max_connections: int = 512
    max_headers: int = 100
    max_header_bytes: int = 32 << 10
    header_seconds: float = 10.0
    body_seconds: float = 60.0
    write_seconds: float = 30.0
    idle_connection_seconds: float = 75.0
    keep_alive_seconds: float = 10.0
    mode: str = "auto"
    ignore_unknown: bool = False
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
