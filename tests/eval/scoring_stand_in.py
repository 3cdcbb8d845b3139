"""The stand-in server of the teachers' tests, with the routes an evaluation asks besides: a toy that speaks bytes."""

from __future__ import annotations

from typing import Any

from stand_in_server import StandIn
from torch import nn


class ScoringStandIn(StandIn):
    """``echo``: whether it takes it. ``least_tokens``: to be asked for. ``silent``: scores what it wrote alone."""

    def __init__(
        self, model: nn.Module, echo: bool = True, least_tokens: int = 0, silent: bool = False, style: str = "ids"
    ) -> None:
        self.takes_echo, self.least_tokens, self.silent = echo, least_tokens, silent
        super().__init__(model, style=style)

    def respond(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> tuple[int | None, Any]:
        if path == "/v1/models":
            return 200, {"data": [{"id": "toy", "owned_by": "stand-in", "max_model_len": 256}]}
        if path == "/tokenize":
            return 200, {"tokens": list(body["prompt"].encode())}
        if path != "/v1/completions":
            return 404, {"error": "no such route"}
        if not body.get("echo"):
            return 200, {"choices": [{"index": 0, "text": "continued"}]}
        if not self.takes_echo or body["max_tokens"] < self.least_tokens:
            return 400, {"error": "echo is not supported" if not self.takes_echo else "max_tokens must be at least 1"}
        if self.silent:
            lists = {"tokens": ["token_id:9"], "token_logprobs": [-1.0], "top_logprobs": [{"token_id:9": -1.0}]}
            return 200, {"choices": [{"index": 0, "text": "x", "logprobs": lists}]}
        return super().respond(path, body, headers)

    def _choice(self, index: int, prompt: list[int], top_k: int) -> dict[str, Any]:
        choice = super()._choice(index, prompt, top_k)
        found = choice["logprobs"]
        pairs = zip(found["tokens"], found["top_logprobs"], strict=True)
        found["token_logprobs"] = [None if best is None else best[name] for name, best in pairs]
        return choice
