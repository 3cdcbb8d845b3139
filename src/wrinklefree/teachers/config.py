"""The teacher of a recipe, typed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wrinklefree.errors import InputError

# Keys that say where answers come from and how long to wait for them, not what they are.
WHERE_ANSWERS_COME_FROM = ("cache_dir", "url", "key_variable", "timeout_seconds", "retries", "ahead")


@dataclass(frozen=True)
class TeacherConfig:
    """Who teaches, and how it is kept; read when an objective needs a teacher.

    ``kind``: local (a model in this process), remote (an OpenAI-compatible server), cached (answers kept on disk by an
    earlier run, and nobody to ask). ``source``: the local model; None is ``model.teacher``, then the original model.
    ``top_k``: answer with the K most probable tokens instead of states; local only if set, remote and cached always
    (None: 20). ``cache_dir``: keep top-K answers there and ask each sequence once.

    local: ``dtype`` None is the student's; ``weights`` full, int8 or nf4 (`teachers.low_bit`); ``attention`` sdpa or
    eager. remote: ``url`` with /v1, ``model`` its name there, ``key_variable`` the environment variable of the key,
    ``timeout_seconds`` of a request, ``retries``, ``ahead`` requests at once.
    """

    kind: Literal["local", "remote", "cached"] = "local"
    source: str | None = None
    top_k: int | None = None
    cache_dir: str | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    weights: Literal["full", "int8", "nf4"] = "full"
    attention: Literal["sdpa", "eager"] = "sdpa"
    url: str | None = None
    model: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    timeout_seconds: float = 120.0
    retries: int = 4
    ahead: int = 2

    def __post_init__(self) -> None:
        if self.kind == "remote" and not (self.url and self.model):
            raise InputError("teacher.kind=remote: set teacher.url (http://HOST:PORT/v1) and teacher.model")
        if self.kind == "cached" and not self.cache_dir:
            raise InputError("teacher.kind=cached: set teacher.cache_dir")
        if self.cache_dir and self.kind == "local" and self.top_k is None:
            raise InputError("teacher.cache_dir: only top-K answers are kept; set teacher.top_k")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"teacher.top_k: found {self.top_k}, it must be at least 1")

    @property
    def answers(self) -> int | None:
        """Return how many tokens a position's answer has; None when the teacher shows its states."""
        return self.top_k if self.kind == "local" else self.top_k or 20
