"""The engine: a packed model in memory, logits and generated text. Needs neither torch nor transformers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.packing import DENSE_LAYOUT, LAYOUT
from wrinklefree.artifact.tables import TABLE_FORMATS
from wrinklefree.engine.constraint import Constraint
from wrinklefree.engine.decoding_settings import DecodingSettings
from wrinklefree.engine.generation import Answer, Generation
from wrinklefree.engine.held import files_of, is_packed, load_parts
from wrinklefree.engine.modes import plan_decoding
from wrinklefree.engine.native import load_native
from wrinklefree.engine.row_costs import measure_row_costs
from wrinklefree.engine.sampling import SamplingParams
from wrinklefree.engine.together import Observer, Seat, Together
from wrinklefree.errors import InputError, unknown_name

if TYPE_CHECKING:
    from wrinklefree.artifact.parts import ModelParts
    from wrinklefree.artifact.tokenizer import Tokenizer

LAYOUTS = {"t2": LAYOUT, "t1.6": DENSE_LAYOUT}
LOGIT_CHUNK = 64  # tokens whose logits are computed together


class Engine:
    """A loaded model. Calls from several threads are safe; each generation holds one of the slots.

    Attributes: ``config`` (the object in config.json), ``context`` (positions of a slot), ``slots``, ``threads``,
    ``kernels_name``, ``kernels_reason``, ``layout`` (of the ternary weights in memory), ``prefetch_bytes`` (how far
    ahead of the kernels weights are asked for; 0: the processor's own prefetching), ``bytes_per_token`` (weights read
    for one decoded token), ``kv_bytes`` (address space of one slot's cache).
    """

    def __init__(
        self, model: Any, config: Mapping[str, Any], place: str = "", files: Mapping[str, bytes] | None = None
    ) -> None:
        """Take over a native model; use `Engine.load` or `Engine.random`. ``files``: the tokenizer's, by name."""
        self._model = model
        self._place = place
        self._files = files
        self._tokenizer: Tokenizer | None = None
        self._lock = threading.Lock()
        self._row_costs: NDArray[np.float64] | None = None
        self._free = list(range(model.slots))
        self.config = config
        self.context: int = model.context
        self.slots: int = model.slots
        self.threads: int = model.threads
        self.vocab_size: int = model.vocab_size
        self.hidden_size: int = model.hidden_size
        self.kernels_name: str = model.kernels_name
        self.kernels_reason: str = model.kernels_reason
        self.layout: str = model.layout
        self.prefetch_bytes: int = model.prefetch_bytes
        self.bytes_per_token: int = model.bytes_per_token
        self.kv_bytes: int = model.kv_bytes

    @classmethod
    def load(
        cls,
        directory: str | Path,
        threads: int | None = None,
        context: int | None = None,
        kernels: str = "auto",
        slots: int = 1,
        kv_type: str = "float16",
        keep_mapped: bool = False,
        layout: str = "stored",
    ) -> Engine:
        """Return the model of a packed directory, or of any other ternary file or directory that `wf import` reads.

        A GGUF file, a Hugging Face directory of a ternary model or a ``.bin`` is turned into a packed model in memory,
        with the tables in the precision that `wf import` would choose; ``keep_mapped`` is for packed directories only.

        ``threads`` None: one for each physical core this process may use. ``context`` None: the smaller of the
        model's own and 4096 positions. ``kv_type``: keys and values in float16, float32 or int8. ``keep_mapped``:
        leave the weights in the page cache, where processes share them, instead of reading them into memory of their
        own (some per cent faster; a file damaged later does no harm). ``layout``: "stored", or "t2" or "t1.6" to hold
        the ternary weights in 2 or 1.6 bits whatever the file has (the same values; needs memory of its own).

        Raises: FormatError when a file is damaged or not what this engine runs, InputError for an argument,
        MissingDependencyError when the extension is not built.
        """
        path = Path(directory)
        options = _options(threads, context, kernels, slots, kv_type)
        if not path.exists():
            raise InputError(f"{path}: found no directory; give one that `wf export` wrote, or a GGUF file")
        if layout not in ("stored", *LAYOUTS):
            raise unknown_name("layout", layout, ("stored", *LAYOUTS))
        if is_packed(path):
            from wrinklefree.artifact.tokenizer import read_model_files

            model = load_native().Model.load(str(path), keep_mapped=keep_mapped, layout=layout, **options)
            config = json.loads((path / "config.json").read_bytes())  # the loader above has checked it
            files: Mapping[str, bytes] = {**read_model_files(path), "config.json": (path / "config.json").read_bytes()}
        else:
            if keep_mapped:
                raise InputError(f"keep_mapped: {path} is no packed directory; write one with `wf import` to map it")
            from wrinklefree.artifact.sources import read_parts  # readers that a packed model does not need

            parts = read_parts(path)
            model = load_parts(parts, layout, options)
            files = files_of(parts)
            config = json.loads(files["config.json"])
        return cls(model, config, str(path), files)._with_ends()

    @classmethod
    def from_parts(
        cls,
        parts: ModelParts,
        threads: int | None = None,
        context: int | None = None,
        kernels: str = "auto",
        slots: int = 1,
        kv_type: str = "float16",
        layout: str = "stored",
    ) -> Engine:
        """Return the model of parts, held in memory; arguments and errors as `load`."""
        options = _options(threads, context, kernels, slots, kv_type)
        if layout not in ("stored", *LAYOUTS):
            raise unknown_name("layout", layout, ("stored", *LAYOUTS))
        files = files_of(parts)
        return cls(
            load_parts(parts, layout, options), json.loads(files["config.json"]), parts.place, files
        )._with_ends()

    def _with_ends(self) -> Engine:
        """Let a diffusion model whose padding ends texts give it out: what ends them, the tokenizer may say too."""
        if len(self._model.banned_tokens) > 1 and self.has_tokenizer:
            self._model.allow_tokens(self.tokenizer.eos_ids)
        return self

    @classmethod
    def random(
        cls,
        config: Mapping[str, Any],
        granularity: str = "tensor",
        group_size: int = 64,
        seed: int = 0,
        threads: int | None = None,
        context: int | None = None,
        kernels: str = "auto",
        slots: int = 1,
        kv_type: str = "float16",
        layout: str = "t2",
        head: str = "q8",
    ) -> Engine:
        """Return a model with random weights of the architecture in ``config`` (keys of config.json), for speed.

        ``layout``: ternary weights in 2 bits (t2) or 1.6 (t1.6). ``head``: q8, q6, q4 or f16, for the embedding too.
        """
        options = _options(threads, context, kernels, slots, kv_type)
        _check_int("seed", seed, 0, (1 << 64) - 1)
        _check_int("group_size", group_size, 0, 1 << 20)
        text = json.dumps(dict(config))
        if layout not in LAYOUTS:
            raise unknown_name("layout", layout, LAYOUTS)
        if head not in TABLE_FORMATS:
            raise unknown_name("head", head, TABLE_FORMATS)
        model = load_native().Model.random(
            text, granularity, group_size, seed, layout=LAYOUTS[layout], head=head, **options
        )
        return cls(model, config)

    @property
    def banned_tokens(self) -> tuple[int, ...]:
        """Tokens whose logits are always minus infinity: a diffusion model's MASK, and padding that ends no text."""
        return tuple(self._model.banned_tokens)

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is a tokenizer.json; without one the steps of a generation carry tokens, no text."""
        return self._files is not None and "tokenizer.json" in self._files

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, read on first use. Raises: InputError for a model without files, FormatError."""
        if self._tokenizer is None:
            if self._files is None:
                raise InputError("tokenizer: a model of random weights has none; give token ids instead of text")
            from wrinklefree.artifact.tokenizer import Tokenizer

            self._tokenizer = Tokenizer.from_files(self._files, self._place)
        return self._tokenizer

    def logits(self, tokens: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Return the logits float32 [T, V] after each of ``tokens`` [T], from an empty cache.

        Raises: InputError for no tokens, more than the context, or a token outside the vocabulary.
        """
        ids = self._checked_tokens(tokens, "tokens")
        out = np.empty((len(ids), self.vocab_size), np.float32)
        start = 0
        for piece in self._chunks(ids, out):
            start += len(piece)
        return out

    def logit_chunks(
        self, tokens: Sequence[int] | NDArray[np.integer[Any]]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield (index of the first token, logits float32 [n, V]) for pieces of ``tokens``; memory is reused.

        For perplexity over long texts: the same numbers as `logits` without holding all of them.
        """
        ids = self._checked_tokens(tokens, "tokens")
        out = np.empty((min(len(ids), LOGIT_CHUNK), self.vocab_size), np.float32)
        start = 0
        for piece in self._chunks(ids, out):
            yield start, piece
            start += len(piece)

    def _chunks(self, ids: NDArray[np.int32], out: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        """Run ``ids`` through a fresh slot; yield the parts of ``out`` [all or LOGIT_CHUNK, V] as they are filled."""
        whole = len(out) == len(ids)
        with self._slot() as slot:
            for start in range(0, len(ids), LOGIT_CHUNK):
                piece = ids[start : start + LOGIT_CHUNK]
                first = start if whole else 0
                part = out[first : first + len(piece)]
                self._model.forward(slot, piece, part)
                yield part

    def generate(
        self,
        prompt: Sequence[int] | NDArray[np.integer[Any]] | str,
        params: SamplingParams | None = None,
        decoding: DecodingSettings | None = None,
        observer: Observer | None = None,
        constraint: Constraint | None = None,
    ) -> Generation:
        """Return the steps of an answer to a prompt, as token ids or text (encoded as the tokenizer says).

        ``observer`` is called after each pass with what it decided and with the guesses for what is still open.
        ``constraint``: of this answer alone, says which tokens may follow; mode ar, which auto chooses then.

        Raises: InputError for an empty prompt, one longer than the context, or a mode that the model was not trained
        for; while iterating, InputError when every slot is in use, FormatError when the weights give logits that are no
        numbers.
        """
        return Together(self).add(prompt, params, decoding, observer, constraint)

    def embed(
        self, prompt: Sequence[int] | NDArray[np.integer[Any]] | str, normalize: bool = True
    ) -> NDArray[np.float32]:
        """Return the mean of the hidden states behind the last norm, float32 [D], of length 1 if ``normalize``.

        Raises: InputError as `generate`.
        """
        from wrinklefree.engine.embedding import add_embedding, normalised

        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        embedding = add_embedding(Together(self), ids).run().embedding
        assert embedding is not None
        return normalised(embedding) if normalize else embedding

    def generate_together(
        self,
        prompts: Sequence[Sequence[int] | NDArray[np.integer[Any]] | str],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        decoding: DecodingSettings | Sequence[DecodingSettings] | None = None,
    ) -> list[Generation]:
        """Return the answers to several prompts, which advance in joint passes whichever of them is asked for a step.

        Each is the same as alone. ``params`` and ``decoding``: for all, or one for each prompt. Answers beyond the
        number of slots wait for a free one.

        Raises: InputError as `generate`, and when there are not as many parameters as prompts.
        """
        together = Together(self)
        each_params = list(params) if isinstance(params, Sequence) else [params] * len(prompts)
        each_decoding = list(decoding) if isinstance(decoding, Sequence) else [decoding] * len(prompts)
        if not len(prompts) == len(each_params) == len(each_decoding):
            raise InputError(f"generate_together: found {len(prompts)} prompts, {len(each_params)} params and "
                             f"{len(each_decoding)} decoding; give one for all, or one for each prompt")  # fmt: skip
        each = zip(prompts, each_params, each_decoding, strict=True)
        return [together.add(*one) for one in each]

    def _join(
        self,
        together: Together,
        prompt: Sequence[int] | NDArray[np.integer[Any]] | str,
        params: SamplingParams | None,
        decoding: DecodingSettings | None,
        observer: Observer | None = None,
        constraint: Constraint | None = None,
    ) -> Generation:
        params = (params or SamplingParams()).with_seed()
        ids = self._checked_tokens(self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt, "prompt")
        if params.stop and not self.has_tokenizer:
            raise InputError("stop: stop strings need a tokenizer, and this model has no tokenizer.json")
        tokenizer = self.tokenizer if self.has_tokenizer else None
        own = _config_eos(self.config) if tokenizer is None else tokenizer.eos_ids
        ends = frozenset(() if params.ignore_eos else own) | frozenset(params.stop_tokens)
        settings = decoding or DecodingSettings()
        plan = plan_decoding(self, ids, params, settings, ends, constraint, together.greedy_window)
        texts = None if tokenizer is None else tokenizer.decoder()
        seat = Seat(plan.decoder, Answer(len(ids), plan.limit, params, ends, texts), observer)
        return Generation(plan.mode, len(ids), params, together, seat)

    def prefill_seconds(self, tokens: int) -> float:
        """Return the seconds that a prompt of ``tokens`` tokens takes, the logits of its last included."""
        _check_int("tokens", tokens, 1, self.context)
        with self._slot(0):
            return float(self._model.time_prefill(tokens))

    def decode_seconds(self, tokens: int, start: int = 1) -> float:
        """Return the seconds of ``tokens`` greedy decode steps behind a prompt of ``start`` tokens."""
        _check_int("start", start, 1, self.context)
        _check_int("tokens", tokens, 1, self.context - start)
        with self._slot(0):
            self._model.time_prefill(start)
            return float(self._model.time_decode(tokens))

    def decode_profile(self, tokens: int, start: int = 1) -> tuple[dict[str, float], float]:
        """Return where the time of a greedy decode step goes, and the waits at barriers a step.

        Seconds a token by part of the model behind a prompt of ``start`` tokens, as the first thread sees them;
        "waiting" is its waiting for other threads. Means over ``tokens`` steps.
        """
        _check_int("start", start, 1, self.context)
        _check_int("tokens", tokens, 1, self.context - start)
        with self._slot(0):
            self._model.time_prefill(start)
            self._model.set_profiling(True)
            try:
                self._model.time_decode(tokens)
                seconds, waits = self._model.profile()
            finally:
                self._model.set_profiling(False)
        return {part: value / tokens for part, value in seconds.items()}, waits / tokens

    def pass_profile(self, rows: int, start: int = 64, passes: int = 10) -> dict[str, float]:
        """Return where the time of a pass of ``rows`` rows and all their logits goes, as `decode_profile` does.

        Seconds a pass behind ``start`` tokens, means over ``passes`` of them.
        """
        _check_int("start", start, 1, self.context)
        _check_int("rows", rows, 1, self.context - start)
        ids = np.arange(rows, dtype=np.int32) % self.vocab_size
        logits = np.zeros((rows, self.vocab_size), np.float32)
        with self._slot(0):
            self._model.time_prefill(start)
            self._model.forward(0, ids, logits)
            self._model.set_profiling(True)
            try:
                for _ in range(passes):
                    self._model.truncate(0, start)
                    self._model.forward(0, ids, logits)
                seconds, _ = self._model.profile()
            finally:
                self._model.set_profiling(False)
        return {part: value / passes for part, value in seconds.items()}

    def pass_seconds(self, tokens: int, all_logits: bool = True) -> float:
        """Return the seconds of one pass over ``tokens`` tokens from an empty cache, with all logits or the last."""
        _check_int("tokens", tokens, 1, self.context)
        with self._slot(0):
            return float(self._model.time_pass(tokens, all_logits))

    def batch_decode_seconds(self, sequences: int, steps: int, start: int = 1) -> float:
        """Return the seconds in which ``sequences`` sequences decode ``steps`` greedy tokens each, in joint passes.

        Each sequence has a slot of its own and begins behind a prompt of ``start`` tokens.
        """
        _check_int("sequences", sequences, 1, self.slots)
        _check_int("start", start, 1, self.context)
        _check_int("steps", steps, 1, self.context - start)
        prompt = np.arange(start, dtype=np.int32) % self.vocab_size
        with ExitStack() as held:
            for slot in range(sequences):
                held.enter_context(self._slot(slot))
                self._model.forward(slot, prompt, None)
            return float(self._model.time_batch_decode(sequences, steps))

    def row_costs(self) -> NDArray[np.float64]:
        """Return the time of passes of 1, 2, .. rows with all logits, in passes of one row: float64 [17].

        Measured when first asked for, in about a quarter of a second, with the threads of this engine.
        Raises: InputError when every slot is in use.
        """
        if self._row_costs is None:
            with self._slot() as slot:
                self._row_costs = measure_row_costs(self._model, slot)
        return self._row_costs

    @contextmanager
    def _slot(self, wanted: int | None = None) -> Iterator[int]:
        """Hold a free slot (or the one wanted), emptied. Raises: InputError when it is in use."""
        with self._lock:
            if not self._free or (wanted is not None and wanted not in self._free):
                raise InputError(
                    f"all {self.slots} slots are in use; finish or close a generation, or load with more slots"
                )
            slot = self._free[0] if wanted is None else wanted
            self._free.remove(slot)
        try:
            self._model.truncate(slot, 0)
            yield slot
        finally:
            with self._lock:
                self._free.append(slot)
                self._free.sort()

    def _checked_tokens(self, tokens: Sequence[int] | NDArray[np.integer[Any]], place: str) -> NDArray[np.int32]:
        """Return token ids as int32 [T] after checking their number and range."""
        try:
            ids = np.asarray(tokens)
        except (ValueError, OverflowError) as error:
            raise InputError(f"{place}: token ids must be a flat list of integers ({error})") from error
        if ids.size == 0:
            raise InputError(f"{place}: found no token, at least one is needed")
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise InputError(f"{place}: found an array of {ids.ndim} dimensions of {ids.dtype}, needed is a flat list")
        if len(ids) > self.context:
            raise InputError(
                f"{place}: {len(ids)} tokens are more than the context of {self.context}; "
                "shorten it or load the model with a larger context"
            )
        wrong = np.flatnonzero((ids < 0) | (ids >= self.vocab_size))
        if wrong.size:
            at = int(wrong[0])
            raise InputError(f"{place}: found token {ids[at]} at index {at}, allowed are 0 to {self.vocab_size - 1}")
        return np.ascontiguousarray(ids, np.int32)


def _config_eos(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the end tokens of a config.json, for a model without tokenizer files."""
    found = config.get("eos_token_id")
    ids = found if isinstance(found, list) else [found]
    return tuple(token for token in ids if isinstance(token, int))


def _options(threads: int | None, context: int | None, kernels: str, slots: int, kv_type: str) -> dict[str, int | str]:
    if threads is not None:
        _check_int("threads", threads, 1, 256)
    if context is not None:
        _check_int("context", context, 1, (1 << 31) - 1)
    _check_int("slots", slots, 1, 1024)
    return {
        "threads": threads or 0,
        "context": context or 0,
        "kernels": kernels,
        "slots": slots,
        "kv_type": kv_type,
    }


def _check_int(name: str, found: object, least: int, most: int) -> None:
    if not isinstance(found, int) or isinstance(found, bool) or not least <= found <= most:
        raise InputError(f"{name}: found {found!r}, allowed is an integer from {least} to {most}")
