"""Grammars: what a text must look like, and the state of one answer that keeps to it. The only door to llguidance.

A grammar comes from a client and is compiled under limits: of its size, its nesting, the work that compiling and each
mask may cost. Compiling happens in threads of its own, where the first mask is computed too: what is too complex shows
there, before the engine is asked. Later masks take some hundredths of a millisecond.
"""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from wrinklefree.engine import Engine
from wrinklefree.errors import InputError
from wrinklefree.server.errors import ApiError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer
    from llguidance._lib import JsonCompileOptions

_TOKENIZERS: WeakKeyDictionary[Engine, Any] = WeakKeyDictionary()
COMPILE_SECONDS = 10.0
_COMPILERS = 2  # threads
_MASK_SECONDS = 0.25  # all answers wait while one's mask is computed; usually it takes some 0.00005
# Between the parts of a JSON text: nothing, a space, or a line's end with up to 32 of them. Without a bound a small
# model may write white space until its tokens are used up.
JSON_OPTIONS: JsonCompileOptions = {"whitespace_pattern": r"(\n {0,32}| )?", "lenient": False, "coerce_one_of": False}


@dataclass(frozen=True)
class Rule:
    """What a text must keep to. ``field``: the request's, for messages."""

    field: str
    kind: Literal["json_schema", "regex", "lark"]
    text: str


class GrammarState:
    """The `engine.Constraint` of one answer.

    Its methods raise ApiError when it is too complex to go on, or the model cannot; that ends this answer alone.
    """

    def __init__(self, field: str, matcher: LLMatcher, mask: NDArray[np.uint32], vocab_size: int) -> None:
        """``mask`` uint32 [of the tokenizer's vocabulary], the allowed first tokens; both are this answer's own."""
        self._field = field
        self._matcher = matcher
        self._mask = mask
        self._words = -(-vocab_size // 32)
        self._known = True

    @property
    def finished(self) -> bool:
        """Whether nothing may follow but the end."""
        if not self._matcher.is_stopped():
            return False
        if self._matcher.is_error():
            raise self._failed(_reason(self._matcher))
        return True

    def mask(self) -> NDArray[np.uint32]:
        """Return the allowed next tokens, uint32 [ceil(V / 32)]."""
        if not self._known:
            started = time.thread_time()  # not the wall's: a busy machine is nobody's fault
            _fill(self._matcher, self._mask)
            self._known = True
            if self._matcher.is_error():
                raise self._failed(_reason(self._matcher))
            if time.thread_time() - started > _MASK_SECONDS:
                raise self._failed(f"the next tokens took more than {_MASK_SECONDS:g} s to find")
        return self._mask[: self._words]

    def accept(self, token: int) -> None:
        """Go on behind a token that was allowed."""
        if not self._matcher.consume_token(token):
            raise self._failed(_reason(self._matcher))
        self._known = False

    def _failed(self, reason: str) -> ApiError:
        message = f"{self._field}: cannot be kept to by this answer; use a simpler one ({reason})"
        return ApiError(400, message, param=self._field, code="grammar_failed")


class Grammars:
    """Makes the constraints of one model's answers."""

    def __init__(self, engine: Engine) -> None:
        """Do nothing yet; who does not want the first request to wait calls `prepare` before."""
        self._engine = engine
        self._pool = ThreadPoolExecutor(_COMPILERS, "grammar")

    async def compile(self, rule: Rule, count: int = 1) -> list[GrammarState]:
        """Return ``count`` constraints of the same rule, each for one answer.

        Raises: ApiError for a rule that is wrong, has parts that are not known, or takes too long.
        """
        if not self._engine.has_tokenizer:
            raise ApiError(
                400, f"{rule.field}: this model has no tokenizer, so no text can be asked for", param=rule.field
            )
        work = asyncio.get_running_loop().run_in_executor(self._pool, self._compile, rule, count)
        try:
            return await asyncio.wait_for(work, COMPILE_SECONDS)
        except TimeoutError:
            message = f"{rule.field}: not compiled within {COMPILE_SECONDS:g} s; use a simpler one"
            raise ApiError(400, message, param=rule.field, code="grammar_too_complex") from None

    def _compile(self, rule: Rule, count: int) -> list[GrammarState]:
        from llguidance import LLMatcher  # only where a grammar is asked for

        try:
            tokenizer = prepare(self._engine)
        except InputError as error:
            raise ApiError(400, f"{rule.field}: {error}", param=rule.field) from error
        try:
            source = _source(rule)
        except ValueError as error:  # NaN, which Python's JSON lets through
            raise ApiError(
                400, f"{rule.field}: not JSON ({error})", param=rule.field, code="invalid_grammar"
            ) from error
        matcher = LLMatcher(tokenizer, source, log_level=0, limits=_limits())
        copies = [matcher.deep_copy() for _ in range(count - 1)]
        mask = np.zeros(-(-tokenizer.vocab_size // 32), np.uint32)
        if not matcher.is_error():
            _fill(matcher, mask)
        if matcher.is_error():
            raise ApiError(400, f"{rule.field}: {_reason(matcher)}", param=rule.field, code="invalid_grammar")
        return [GrammarState(rule.field, one, mask.copy(), self._engine.vocab_size) for one in (matcher, *copies)]


def prepare(engine: Engine) -> LLTokenizer:
    """Return the model's tokenizer as the library wants it; made once (0.3 s for 50,000 tokens, all threads wait).

    Raises: InputError for a tokenizer that the library cannot use.
    """
    if engine not in _TOKENIZERS:
        from llguidance import LLTokenizer

        known = engine.tokenizer
        definition = {**json.loads(known.definition), "padding": None, "truncation": None}
        size = max(engine.vocab_size, known.vocab_size)
        ends = [token for token in known.eos_ids if token < known.vocab_size]
        try:
            _TOKENIZERS[engine] = LLTokenizer(json.dumps(definition), n_vocab=size, eos_token=ends or None)
        except Exception as error:  # the library's own words are of any type
            raise InputError(f"this model's tokenizer is of a kind that has no grammars ({error})"[:300]) from error
    found: LLTokenizer = _TOKENIZERS[engine]
    return found


def _limits() -> LLParserLimits:
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=500_000,
        step_lexer_fuel=100_000,
        max_items_in_row=10_000,
        step_max_items=100_000,
        max_lexer_states=25_000,
        max_grammar_size=100_000,
        verbose_errors=False,
    )


def _source(rule: Rule) -> str:
    from llguidance import LLMatcher

    if rule.kind == "json_schema":
        # overrides: what a schema's own "x-guidance" asks for does not count
        return LLMatcher.grammar_from_json_schema(rule.text, overrides=JSON_OPTIONS)
    return LLMatcher.grammar_from_regex(rule.text) if rule.kind == "regex" else LLMatcher.grammar_from_lark(rule.text)


def _fill(matcher: LLMatcher, mask: NDArray[np.uint32]) -> None:
    matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)


def _reason(matcher: LLMatcher) -> str:
    """Return the library's message on one line, without the state that it shows."""
    found = " ".join(matcher.get_error().replace("<non-verbose/>", "").split())[:400]
    return "the model has no text that keeps to it" if found.startswith("NoExtension") else found
