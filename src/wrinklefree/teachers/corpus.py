"""A corpus that a teacher wrote itself: data for distilling it where the data it was trained on is not to be had.

Source: arXiv 2305.17888 (LLM-QAT), data-free distillation: texts sampled from the full-precision model keep its
distribution better than another corpus does. Differs: there the first few tokens of a text are the most probable ones;
here every token is sampled, and a text begins with a prompt of the user's or with one random token.

    OUT.jsonl             one object a line: text, id, tokens (of the answer); appears when it is complete
    OUT.jsonl.json        the settings it was made with
    OUT.jsonl.part        what there is so far; the same command goes on behind its last whole group of documents

Document i follows from the settings and i alone, so an interrupted corpus ends as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from wrinklefree.artifact.files import json_bytes, read_json, space_errors, write_bytes
from wrinklefree.errors import FormatError, InputError


@dataclass(frozen=True)
class CorpusSettings:
    """``tokens``: sampled ones of the whole corpus, at least.

    ``together``: documents of one group; ``rows`` of them are sampled at once (None: all), and more as they end.

    ``model``: what tells models apart. ``prompts``: SHA-256 of the prompts; None begins with random tokens.
    """

    model: str
    tokens: int
    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    together: int = 8
    chat: bool = False
    prompts: str | None = None
    rows: int | None = None

    def __post_init__(self) -> None:
        if min(self.tokens, self.max_tokens, self.together, self.rows or 1) < 1:
            raise InputError("corpus: tokens, max_tokens, together and rows must be at least 1")
        if self.temperature < 0.0 or not 0.0 < self.top_p <= 1.0:
            raise InputError("corpus: temperature must not be negative, and top_p above 0 and at most 1")


class Writer(Protocol):
    """Who samples: token ids of prompts to token ids of answers, each from its own seed."""

    def __call__(self, prompts: list[list[int]], seeds: list[int], settings: CorpusSettings) -> list[list[int]]: ...


@dataclass(frozen=True)
class CorpusReport:
    """What was written, of it sampled tokens, and how many documents an earlier attempt had left."""

    out: Path
    documents: int
    tokens: int
    resumed_documents: int


def write_corpus(
    out: Path,
    settings: CorpusSettings,
    prompts: Sequence[Sequence[int]],
    sample: Writer,
    to_text: Callable[[list[int]], str],
    on_progress: Callable[[float, str], None] = lambda share, what: None,
) -> CorpusReport:
    """Sample documents until ``settings.tokens`` are reached; ``prompts`` in order, again and again.

    ``to_text``: of prompt and answer together, without the end token.

    Raises: InputError when ``out`` exists, or a part of another corpus stands in its place.
    """
    if out.exists():
        raise InputError(f"{out}: exists already; choose another name or remove it")
    if not prompts:
        raise InputError("corpus: no prompts")
    part = out.with_name(f"{out.name}.part")
    lines, tokens = _resume(part, settings)
    resumed = lines
    with space_errors(part), part.open("ab") as stream:
        while tokens < settings.tokens:
            numbers = range(lines, lines + settings.together)
            given = [list(prompts[i % len(prompts)]) for i in numbers]
            answers = sample(given, [document_seed(settings.seed, i) for i in numbers], settings)
            for i, prompt, answer in zip(numbers, given, answers, strict=True):
                record = {"text": to_text([*prompt, *answer]), "id": f"sampled-{i}", "tokens": len(answer)}
                stream.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
                tokens += len(answer)
            stream.flush()
            os.fsync(stream.fileno())
            lines += settings.together
            on_progress(min(tokens / settings.tokens, 1.0), f"{lines} documents, {tokens:,} tokens")
    write_bytes(_beside(out), json_bytes({**asdict(settings), "documents": lines, "sampled_tokens": tokens}))
    part.replace(out)
    _beside(part).unlink()
    return CorpusReport(out, lines, tokens, resumed)


def document_seed(seed: int, document: int) -> int:
    """Return the seed of one document, 63 bits."""
    digest = hashlib.sha256(f"corpus {seed} {document}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def prompts_hash(prompts: Sequence[Sequence[int]]) -> str:
    """Return what `CorpusSettings.prompts` holds."""
    return hashlib.sha256(json.dumps([list(p) for p in prompts]).encode()).hexdigest()


def _resume(part: Path, settings: CorpusSettings) -> tuple[int, int]:
    """Cut what an interrupted attempt left to whole groups; return its documents and tokens."""
    wanted: dict[str, Any] = asdict(settings)
    if not part.exists():
        with space_errors(part):
            part.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(_beside(part), json_bytes(wanted))
        return 0, 0
    found = read_json(_beside(part))
    if other := ", ".join(name for name in wanted if found.get(name) != wanted[name]):
        raise InputError(f"{part}: is part of a corpus with other settings ({other}); remove it, or give the same ones")
    whole = part.read_bytes().split(b"\n")[:-1]
    kept = whole[: len(whole) - len(whole) % settings.together]
    try:
        tokens = sum(int(json.loads(line)["tokens"]) for line in kept)
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{part}: is damaged; remove it") from error
    with part.open("r+b") as stream:
        stream.truncate(sum(len(line) + 1 for line in kept))
    return len(kept), tokens


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
