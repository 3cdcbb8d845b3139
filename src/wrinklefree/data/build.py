"""From the data part of a recipe to a training stream and held-out sequences: the one place that joins the steps."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from wrinklefree.data.document import Document, SourceConfig
from wrinklefree.data.packing import PackedSequences
from wrinklefree.data.python_docs import HELD_OUT_TOPICS
from wrinklefree.data.sources import read_documents
from wrinklefree.data.split import Split, set_aside, shared_document, split, without_duplicates
from wrinklefree.data.stream import PackedStream
from wrinklefree.data.tokens import NO_DOCUMENTS, TextEncoder, tokenize
from wrinklefree.errors import InputError


@dataclass(frozen=True)
class DataConfig:
    """What to train on and what to hold out.

    ``sources``: one or more; with several, ``SourceConfig.weight`` is a source's share of the sequences.
    ``sequence_length``: tokens per packed sequence.
    ``seed``: of the order and the mixture.
    ``held_out_share``: share of the documents of each source that is held out (python-docs has a fixed list); 0 holds
    nothing out of the others.
    ``cache_dir``: where token arrays are kept between runs; None keeps none.
    ``workers``: threads that tokenise and build batches ahead, ``prefetch`` batches each; 0 does it all when asked.
    ``probe``: sources of the probe set, by which influence judges training text; ``probe_share`` sets aside so much
    of each source's training documents for it instead. With neither there is no probe.
    """

    sources: tuple[SourceConfig, ...] = field(default_factory=lambda: (SourceConfig(),))
    sequence_length: int = 256
    seed: int = 0
    held_out_share: float = 0.1
    cache_dir: str | None = None
    workers: int = 0
    prefetch: int = 2
    probe: tuple[SourceConfig, ...] = ()
    probe_share: float = 0.0


@dataclass(frozen=True)
class TrainingData:
    """The stream to train on, the held-out sequences (in document order, never shuffled), and the two splits' texts.

    ``probe``: sequences that are neither trained on nor held out, if the configuration asks for them.
    """

    stream: PackedStream
    held_out: PackedSequences
    splits: tuple[Split, ...]
    probe: PackedSequences | None = None


def build_data(config: DataConfig, encoder: TextEncoder) -> TrainingData:
    """Return the training stream and the held-out sequences of a recipe.

    Raises: InputError when a source, the split or a length is wrong.
    """
    if not config.sources:
        raise InputError("data.sources: found none, at least one is needed")
    splits, probe = split_probe(split_sources(config.sources, config.held_out_share), config)
    cache = Path(config.cache_dir) if config.cache_dir else None

    def packed(documents: tuple[Document, ...]) -> PackedSequences:
        tokens = tokenize(documents, encoder, cache, config.workers) if documents else NO_DOCUMENTS
        return PackedSequences(tokens, config.sequence_length, encoder.eos_id)

    held_out = tuple(document for part in splits for document in part.held_out)
    weights = [source.weight for source in config.sources]
    stream = PackedStream(
        [packed(part.train) for part in splits], config.seed, weights, config.workers, config.prefetch
    )
    return TrainingData(stream, packed(held_out), splits, packed(probe) if probe else None)


def split_probe(splits: tuple[Split, ...], config: DataConfig) -> tuple[tuple[Split, ...], tuple[Document, ...]]:
    """Return the splits without what the probe shares with their training text, and the probe's documents.

    What is reported must not be what the mixture is steered by: the probe never holds held-out text.

    Raises: InputError when a given probe shares a document or a passage with the held-out documents.
    """
    if config.probe:
        probe = tuple(document for source in config.probe for document in read_documents(source))
        held_out = [document for part in splits for document in part.held_out]
        if found := shared_document(probe, held_out):
            raise InputError(
                f"probe: its document {found} shares text with a held-out document; a mixture that is steered by what "
                "is reported proves nothing. Give other documents, or use probe_share"
            )
        return tuple(part.guarded(part.train, probe) for part in splits), probe
    if not config.probe_share:
        return splits, ()
    sides = [set_aside(part.train, config.probe_share) for part in splits]
    probe = tuple(document for _, aside in sides for document in aside)
    return tuple(part.guarded(rest, probe) for part, (rest, _) in zip(splits, sides, strict=True)), probe


def split_sources(sources: tuple[SourceConfig, ...], share: float = 0.1) -> tuple[Split, ...]:
    """Return each source split; training text of every source is guarded against the held-out text of all.

    A text that several sources have is kept in the first of them.

    Raises: InputError when a source has nothing of its own.
    """
    found = [read_documents(source) for source in sources]
    splits = []
    for number, (source, kept) in enumerate(zip(sources, without_duplicates(found), strict=True)):
        if not kept:
            raise InputError(
                f"{source.path or source.kind}: every document of it stands in the sources before it; remove it"
            )
        splits.append(replace(_split(source, kept, share), duplicates=len(found[number]) - len(kept)))
    if len(splits) == 1:
        return tuple(splits)
    everything = [document for part in splits for document in part.held_out]
    return tuple(part.guarded(part.train, everything) for part in splits)


def split_source(source: SourceConfig, share: float = 0.1) -> Split:
    """Return one source's training and held-out documents; python-docs holds out HELD_OUT_TOPICS, others ``share``."""
    return _split(source, read_documents(source), share)


def _split(source: SourceConfig, documents: list[Document], share: float) -> Split:
    if source.kind == "python-docs":
        present = {document.id for document in documents}
        return split(documents, ids=[name for name in HELD_OUT_TOPICS if name in present])
    return split(documents, share)
