"""`--verify-with PROGRAM`: does another program that reads the written file do what the engine does?

Two programs never give the same logits for a ternary file, because each rounds activations to eight bits in its own
way: the engine, bitnet.cpp and transformers by the largest number of a row, llama.cpp by that of 256 or 32 columns. How
far that may move logits is not guessed but measured, against a reading of the same file that rounds nothing, in float32
(`models.exact`). With E its logits, R its logits when it rounds as coarsely as the file's type lets a program round
(the row for I2_S and Hugging Face's directories, 256 columns otherwise), O the engine's and F the foreign program's,

- F may lie `ROUNDING_FACTOR` times as far from E as R does, root mean square over the log-probabilities of each prompt
  and its continuation. The factor leaves room for keys and values in float16, for tables of functions and for another
  rounding of the head. A reader that misunderstands one tensor misses this by far.
- A greedy token of F that is not O's is explained when O's own margin between the two is at most what rounding moves
  the margin of this pair: the largest |O - E| over the text plus `ROUNDING_FACTOR` times the largest |R - E|. That is
  the way from O to E and from E to F, |F - O| <= |F - E| + |O - E|. Nothing that F says enters this bound, so a wrong
  reader cannot excuse itself.

The texts are the engine's greedy continuations, given to the program as tokens (teacher-forced); then the program
continues the prompts itself (free-running). Its own tokens of the prompts' texts must be ours.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.gguf.container import is_gguf, read_gguf
from wrinklefree.artifact.parts import ModelParts
from wrinklefree.engine import Engine, SamplingParams
from wrinklefree.engine.decoding_settings import DecodingSettings
from wrinklefree.errors import InputError, VerificationError, unknown_name
from wrinklefree.export.foreign_programs import (
    Opener,
    Reader,
    open_line_program,
    open_llama_cpp_python,
    open_node_llama_cpp,
)
from wrinklefree.export.foreign_server import ServerReader, open_llama_server
from wrinklefree.models.exact import PreTrainedModel, exact_model, float_logits, rounded_inputs
from wrinklefree.models.reader import TransformersReader

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "In 1969, 2 people walked on the Moon; they stayed for",
)
TOKENIZER_TEXTS = ("  naïve café – ½\t“quoted”\n\n中文 🙂 1234567 don't", "x = [i**2 for i in range(10)]\n\n\nprint(x)")
ROUNDING_FACTOR = 2.0
BLOCK_COLUMNS = 256  # of which llama.cpp rounds activations together at most (ggml, block_q8_K)
# How the names of formats begin that transformers reads, and the other programs.
HF_FORMATS, GGUF_FORMATS = ("hf",), ("gguf-",)


def _open_transformers(program: Path | None, model: Path, vocab_size: int, context: int, timeout: float) -> Reader:
    return TransformersReader(model)


# By name; programs given by path are chosen in `_opener`.
FOREIGN: dict[str, Opener] = {
    "transformers": _open_transformers,
    "llama-cpp-python": open_llama_cpp_python,
    "node-llama-cpp": open_node_llama_cpp,
}


@dataclass(frozen=True)
class ForeignDifference:
    """The first token of a continuation where the program chose otherwise than the engine.

    ``own_margin``: by how much the engine's logit of its token leads that of the program's token; ``foreign_margin``
    the other way round in the program, None where it does not tell; ``bound`` what rounding explains.
    """

    prompt: str
    position: int
    foreign_token: str
    own_token: str
    own_margin: float
    foreign_margin: float | None
    bound: float

    @property
    def explained(self) -> bool:
        return self.own_margin <= self.bound


@dataclass(frozen=True)
class ForeignAgreement:
    """How a foreign program agrees with the engine over all prompts.

    ``greedy_tokens_equal``: tokens before the first difference, the program continuing by itself; ``same_choices``: how
    many of the engine's tokens are the program's first choice too, when it reads the engine's text.
    ``logit_cosine_min``: of centred logits, None when the program tells only the likeliest tokens. ``kl_mean``: mean
    Kullback-Leibler divergence of its distribution from the engine's, in nats. ``distance``, ``own_distance``,
    ``rounding_distance``: root mean square of log-probabilities against the unrounded reading, of the program, of the
    engine, and of that reading with rounded activations; ``distance_ratio``: the largest quotient of the first and the
    last over the prompts.
    """

    program: str
    version: str
    prompts: int
    greedy_tokens: int
    greedy_tokens_equal: int
    same_choices: int
    logit_cosine_min: float | None
    log_probability_max_difference: float
    kl_mean: float
    distance: float
    own_distance: float
    rounding_distance: float
    distance_ratio: float
    other_tokens: tuple[str, ...]
    differences: tuple[ForeignDifference, ...]

    @property
    def problems(self) -> list[str]:
        """What speaks against the file, a sentence each."""
        found = [f"its tokens of {text!r} are not ours" for text in self.other_tokens]
        if not self.distance_ratio <= ROUNDING_FACTOR:
            found.append(
                f"its logits lie {self.distance_ratio:.3g} times as far from the unrounded reading as rounding "
                f"activations moves them ({ROUNDING_FACTOR:g} are allowed)"
            )
        for d in self.differences:
            if not d.explained:
                found.append(
                    f"token {d.position} after {d.prompt!r} is {d.foreign_token!r} instead of {d.own_token!r}, whose "
                    f"logit leads by {d.own_margin:.3g}; rounding explains {d.bound:.3g}"
                )
        return found

    @property
    def passed(self) -> bool:
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        plain = {**asdict(self), "passed": self.passed}
        plain["other_tokens"] = list(self.other_tokens)
        plain["differences"] = [{**asdict(d), "explained": d.explained} for d in self.differences]
        return plain


def check_program(program: str, format: str) -> None:
    """Say before any work whether ``program`` can be driven and reads what the format ``format`` is.

    Raises: InputError when it is not there, or reads other files.
    """
    _opener(program)
    formats, kind = (HF_FORMATS, "hf and hf-plain") if program == "transformers" else (GGUF_FORMATS, "GGUF files")
    if not format.startswith(formats):
        raise InputError(f"--verify-with {program}: it reads {kind}, not what --format {format} writes")


def verify_with(
    program: str,
    path: Path,
    parts: ModelParts,
    engine: Engine,
    prompts: Sequence[str] = PROMPTS,
    greedy_tokens: int = 32,
    timeout_seconds: float = 600.0,
) -> ForeignAgreement:
    """Return how ``program`` agrees with the engine on the written file, when it does.

    Arguments as `compare_with_program`. Raises: InputError when the program is not there; VerificationError when it
    refuses the file, breaks down, hangs, or disagrees.
    """
    found = compare_with_program(program, path, parts, engine, prompts, greedy_tokens, timeout_seconds)
    if not found.passed:
        raise VerificationError(
            f"{found.program} {found.version} disagrees with the engine: {'; '.join(found.problems)}"
        )
    return found


def compare_with_program(
    program: str,
    path: Path,
    parts: ModelParts,
    engine: Engine,
    prompts: Sequence[str] = PROMPTS,
    greedy_tokens: int = 32,
    timeout_seconds: float = 600.0,
) -> ForeignAgreement:
    """Return how ``program`` agrees with the engine.

    ``program``: a name in `FOREIGN`, or the path of a llama-server, of a Python that has llama-cpp-python, of the
    package node-llama-cpp, or of any executable that speaks the line protocol. ``path``: the written file or directory;
    ``parts``: what our own reader finds there; ``engine``: runs the same model, best with ``kv_type="float32"``.

    Raises: InputError when the program is not there; VerificationError when it refuses the file, breaks down or hangs.
    """
    opener = _opener(program)
    starts = [engine.tokenizer.encode(prompt)[: max(1, engine.context // 2)] for prompt in prompts]
    count = min(greedy_tokens, engine.context - max(len(start) for start in starts))
    longest = max(len(start) for start in starts) + count
    reader = opener(path, engine.vocab_size, -(-longest // 256) * 256, timeout_seconds)
    try:
        texts = (*prompts, *TOKENIZER_TEXTS)
        other = tuple(text for text in texts if reader.tokenize(text) != engine.tokenizer.encode(text))
        readings = _Readings(exact_model(parts), _rounded_columns(path))
        runs = [
            _run(reader, engine, readings, prompt, start, count) for prompt, start in zip(prompts, starts, strict=True)
        ]
        version = reader.version
    finally:
        reader.close()
    return _summary(reader.name, version, runs, other)


def _opener(program: str) -> Any:
    """Return what starts a program, from (model, vocabulary, context, timeout). Raises: InputError."""
    if program in FOREIGN:
        return partial(FOREIGN[program], None)
    path = Path(program)
    if path.name == "node-llama-cpp" and (path / "package.json").is_file():
        return partial(open_node_llama_cpp, path)
    if not (path.is_file() and os.access(path, os.X_OK)):
        if path.name == program:
            raise unknown_name("program", program, (*FOREIGN, "the path of an executable"))
        raise InputError(f"{program}: is no executable file; give llama-server's path, or one of {', '.join(FOREIGN)}")
    if path.name.startswith("python"):
        return partial(open_llama_cpp_python, path)
    return partial(open_llama_server if "server" in path.name else open_line_program, path)


def _rounded_columns(path: Path) -> int | None:
    """Return how many columns share a rounding step at most in programs that read the file; None: all of a row."""
    if path.is_dir() or not is_gguf(path):
        return None
    return None if any(tensor.type.name == "I2_S" for tensor in read_gguf(path).tensors.values()) else BLOCK_COLUMNS


@dataclass(frozen=True)
class _Readings:
    """The model of the file in float32, and how coarsely a program may round its activations."""

    model: PreTrainedModel
    columns: int | None

    def logits(self, tokens: Sequence[int], first: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the logits ``[T - first, V]`` without rounding, and with it."""
        exact = float_logits(self.model, tokens)[first:]
        with rounded_inputs(self.model, self.columns):
            return exact, float_logits(self.model, tokens)[first:]


@dataclass(frozen=True)
class _Run:
    """One prompt: figures that `_summary` adds up."""

    tokens: int
    equal: int
    same: int
    cosine: float
    largest: float
    kl: float
    distance: float
    own_distance: float
    rounding_distance: float
    difference: ForeignDifference | None


def _run(reader: Reader, engine: Engine, readings: _Readings, prompt: str, start: list[int], count: int) -> _Run:
    tokens = _greedy(engine, start, count)
    read, first = [*start, *tokens][:-1], len(start) - 1
    keep = np.delete(np.arange(engine.vocab_size), list(engine.banned_tokens))
    tables = (reader.logits(read, first), engine.logits(read)[first:], *readings.logits(read, first))
    theirs, own, unrounded, rounded = (_log_softmax(table[:, keep]) for table in tables)
    told = np.isfinite(theirs)
    answered = told.any(axis=1)
    # llama-server tells nothing where a token ends within a character; a program that tells all has to tell numbers.
    if not answered.any() or not (answered.all() or isinstance(reader, ServerReader)):
        raise VerificationError(f"{reader.name}: gave logits that are no numbers after {prompt!r}")
    chosen = np.where(answered, keep[np.where(told, theirs, -np.inf).argmax(axis=1)], -1)
    given = reader.greedy(start, count)
    unequal = np.flatnonzero(np.asarray(given) != np.asarray(tokens[: len(given)]))
    place = int(unequal[0]) if unequal.size else None
    gaps = np.where(told, theirs - own, 0.0)
    likely = np.where(told, np.exp(own), 0.0)
    return _Run(
        tokens=int(answered.sum()),
        equal=len(given) if place is None else place,
        same=int((chosen == np.asarray(tokens)).sum()),
        cosine=_lowest_cosine(theirs, own) if told.all() else np.nan,
        largest=float(np.abs(gaps).max()),
        kl=float(-(likely * gaps).sum(axis=1)[answered].mean()),
        distance=_root_mean_square((theirs - unrounded)[told]),
        own_distance=_root_mean_square((own - unrounded)[told]),
        rounding_distance=_root_mean_square((rounded - unrounded)[told]),
        difference=None if place is None else _difference(
            engine, prompt, place, (given[place], tokens[place]),
            [_wide(values, keep, engine) for values in (theirs, own, unrounded, rounded)],
        ),
    )  # fmt: skip


def _difference(
    engine: Engine, prompt: str, place: int, pair: tuple[int, int], tables: Sequence[NDArray[np.float64]]
) -> ForeignDifference:
    """Judge the first token that differs; ``pair`` is the program's and ours.

    ``tables`` ``[T, V]`` of the whole text: the program's, the engine's, without rounding, and with it.
    """
    wrong, right = (engine.tokenizer.decode([token], skip_special=False) for token in pair)
    with np.errstate(invalid="ignore"):  # a token that the engine never gives has no logit; then nothing is explained
        theirs, own, unrounded, rounded = (table[:, pair[1]] - table[:, pair[0]] for table in tables)
        bound = np.abs(own - unrounded).max() + ROUNDING_FACTOR * np.abs(rounded - unrounded).max()
    return ForeignDifference(
        prompt=prompt,
        position=place,
        foreign_token=wrong,
        own_token=right,
        own_margin=min(float(own[place]), float(np.finfo(np.float32).max)),
        foreign_margin=-float(theirs[place]) if np.isfinite(theirs[place]) else None,
        bound=float(bound) if np.isfinite(bound) else 0.0,
    )


def _summary(name: str, version: str, runs: Sequence[_Run], other: tuple[str, ...]) -> ForeignAgreement:
    cosine = min(run.cosine for run in runs)
    return ForeignAgreement(
        program=name,
        version=version,
        prompts=len(runs),
        greedy_tokens=sum(run.tokens for run in runs),
        greedy_tokens_equal=sum(run.equal for run in runs),
        same_choices=sum(run.same for run in runs),
        logit_cosine_min=None if np.isnan(cosine) else cosine,
        log_probability_max_difference=max(run.largest for run in runs),
        kl_mean=float(np.mean([run.kl for run in runs])),
        distance=_root_mean_square(np.array([run.distance for run in runs])),
        own_distance=_root_mean_square(np.array([run.own_distance for run in runs])),
        rounding_distance=_root_mean_square(np.array([run.rounding_distance for run in runs])),
        distance_ratio=max(run.distance / max(run.rounding_distance, 1e-12) for run in runs),
        other_tokens=other,
        differences=tuple(run.difference for run in runs if run.difference is not None),
    )


def _greedy(engine: Engine, prompt: list[int], num_tokens: int) -> list[int]:
    params = SamplingParams(max_tokens=num_tokens, temperature=0.0, top_p=1.0, seed=0, ignore_eos=True)
    return engine.generate(prompt, params, DecodingSettings("ar")).run().tokens


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return log-probabilities; what is told of the likeliest tokens only are log-probabilities already."""
    wide = logits.astype(np.float64)
    if np.isnan(wide).any():
        return wide
    wide -= wide.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return result


def _wide(values: NDArray[np.float64], keep: NDArray[np.intp], engine: Engine) -> NDArray[np.float64]:
    """Return values of kept tokens under their own numbers; tokens that the engine never gives get minus infinity."""
    out = np.full((len(values), engine.vocab_size), -np.inf)
    out[:, keep] = values
    return out


def _lowest_cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (a, b))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / np.maximum(norms, 1e-30)).min())


def _root_mean_square(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
