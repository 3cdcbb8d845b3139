"""A `Scorer` as a model of lm-evaluation-harness: its texts are turned into requests of tokens, its figures come back.

Differs from the harness's own Hugging Face model: a continuation that melts into the last token of its context is
scored from where the two texts' tokens part (there an assertion fails); a generation setting that no scorer has is
refused. All else is token for token the same, see the tests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from wrinklefree.errors import InputError
from wrinklefree.eval.scorer import Request, Scorer, Settings, document_ids

# Of a model that does not say: lm_eval.models.huggingface.HFLM takes the same.
UNKNOWN_CONTEXT = 2048
_NEW_TOKENS = 256  # where a task does not say, as HFLM
_TEXTS_KEPT = 1024
# What generation settings are called -> ours. Others must have the value that changes nothing.
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_KNOWN = {*_LIMITS, "until", "do_sample", "temperature", "top_p", "seed"}
_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "num_beams": (1, None),
    "repetition_penalty": (1, 1.0, None),
    "top_k": (0, -1, None),
    "min_p": (0, 0.0, None),
}
_ONLY_SAMPLING = ("top_k", "top_p", "min_p", "typical_p")

OnProgress = Callable[[int, int, str], None]


class ScorerModel(TemplateLM):
    """The harness's model over a scorer. ``counts``: requests, cut contexts, seams inside a token."""

    def __init__(self, scorer: Scorer, on_progress: OnProgress | None = None) -> None:
        super().__init__()
        self.scorer, self._show = scorer, on_progress
        self.context = scorer.context or UNKNOWN_CONTEXT
        self.counts = Counter({"requests": 0, "contexts_cut": 0, "seams_inside_a_token": 0})
        self._whole = lru_cache(_TEXTS_KEPT)(lambda text: tuple(document_ids(scorer, text)))

    @property
    def eot_token_id(self) -> int:
        """The token behind which a text without context begins."""
        return self.scorer.first_token()

    @property
    def tokenizer_name(self) -> str:
        """What the harness's cache of requests goes by."""
        return self.scorer.name

    @property
    def max_length(self) -> int:
        return self.context

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the ids of a text, behind BOS where the model's texts begin so and special tokens are wanted."""
        if add_special_tokens is False:
            return self.scorer.encode(string)
        return list(self._whole(string))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return the prompt of a conversation; without generation prompt, one whose last message is to be continued."""
        if add_generation_prompt:
            return self.scorer.chat(chat_history)
        *before, last = chat_history
        if last["role"] != "assistant":
            raise InputError(f"chat template: the message to be continued is of the role {last['role']!r}")
        return self.scorer.chat(before) + last["content"]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        before, after = super()._encode_pair(context, continuation)
        if after:
            return before, after
        self.counts["seams_inside_a_token"] += 1
        whole = self.tok_encode(context + continuation)
        shared = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(whole))
        return (whole[:shared], whole[shared:]) if shared else ([self.prefix_token_id], whole)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        wanted = [self._request(before, after) for _, before, after in requests]
        scores = self.scorer.score([request for request in wanted if request is not None])
        found: list[tuple[float, bool]] = []
        for number, request in enumerate(wanted, start=1):
            if request is None:
                found.append((0.0, True))
            else:
                score = next(scores)
                found.append((-float(score.losses.sum()), bool(score.greedy.all())))
            self._progress(number, len(wanted), "scored")
        return found

    def _request(self, before: list[int], after: list[int]) -> Request | None:
        """Return the request of a continuation's tokens, None when there is nothing to score."""
        self.counts["requests"] += 1
        if not after:
            return None
        if len(after) > self.context:
            raise InputError(
                f"tasks: a continuation has {len(after)} tokens, the context of {self.scorer.name} is {self.context}"
            )
        tokens = np.array((before + after)[-(self.context + 1) :], np.int64)
        self.counts["contexts_cut"] += len(tokens) < len(before) + len(after)
        return Request(tokens, len(tokens) - len(after))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Return the log-probability of whole texts, in windows of the context, each token scored once."""
        windows: list[tuple[None, list[int], list[int]]] = []
        counts = []
        for (text,) in (request.args for request in requests):
            pieces = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.context, 1)
            own = [(None, *make_disjoint_window(piece)) for piece in pieces]
            windows += own
            counts.append(len(own))
        scores = iter(self._loglikelihood_tokens(windows))
        return [sum(next(scores)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Return continuations; a context that leaves no room for the longest answer is cut on the left."""
        groups: dict[Settings, list[int]] = {}
        repeated: Counter[tuple[str, Settings]] = Counter()
        for number, request in enumerate(requests):
            context, options = request.args
            settings = generation_settings(options)
            # The same text drawn again must not give the same answer again.
            again = repeated[context, settings] if settings.temperature else 0
            repeated[context, settings] += 1
            groups.setdefault(_seeded(settings, again), []).append(number)
        found = [""] * len(requests)
        done = 0
        for settings, numbers in groups.items():
            prompts = [self._prompt(requests[number].args[0], settings) for number in numbers]
            for number, text in zip(numbers, self.scorer.generate(prompts, settings), strict=True):
                found[number] = text
                done += 1
                self._progress(done, len(requests), "answered")
        return found

    def _prompt(self, context: str, settings: Settings) -> list[int]:
        self.counts["requests"] += 1
        room = self.context - settings.max_tokens
        if room < 1:
            raise InputError(
                f"tasks: an answer may have {settings.max_tokens} tokens, {self.scorer.name} has a context of "
                f"{self.context}; choose tasks with shorter answers"
            )
        ids = self.tok_encode(context) or [self.prefix_token_id]
        self.counts["contexts_cut"] += len(ids) > room
        return ids[-room:]

    def _progress(self, done: int, of: int, what: str) -> None:
        if self._show:
            self._show(done, of, f"{done} of {of} {what}")


def generation_settings(options: Mapping[str, Any]) -> Settings:
    """Return the settings of a task's ``generation_kwargs``, by the names of the harness and of Hugging Face.

    Raises: InputError for one that would change the answers and that scorers do not have.
    """
    temperature = float(options.get("temperature") or 0.0)
    if not options.get("do_sample", temperature > 0.0):
        temperature = 0.0
    elif temperature == 0.0:
        temperature = 1.0
    for name, value in options.items():
        idle = name in _ONLY_SAMPLING and temperature == 0.0
        if name not in _KNOWN and not idle and value not in _WITHOUT_EFFECT.get(name, (None,)):
            allowed = ", ".join(sorted(_KNOWN))
            raise InputError(f"generation_kwargs: {name}={value!r} cannot be done here (allowed: {allowed})")
    until = options.get("until") or ()
    limit = next((options[name] for name in _LIMITS if options.get(name) is not None), _NEW_TOKENS)
    return Settings(
        max_tokens=int(limit),
        stop=tuple(text for text in ((until,) if isinstance(until, str) else until) if text),
        temperature=temperature,
        top_p=float(options.get("top_p") or 1.0) if temperature else 1.0,
        seed=int(options.get("seed") or 0),
    )


def _seeded(settings: Settings, again: int) -> Settings:
    if not again:
        return settings
    return Settings(settings.max_tokens, settings.stop, settings.temperature, settings.top_p, settings.seed + again)
