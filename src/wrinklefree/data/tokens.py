"""Documents to token ids: one flat array with the places where documents start, kept on disk between runs.

A document is its text's ids, with the beginning-of-sequence token where the tokenizer puts one, then one end token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.files import new_directory
from wrinklefree.data.document import Document
from wrinklefree.errors import InputError

if TYPE_CHECKING:
    from wrinklefree.artifact.tokenizer import Tokenizer

_CACHE_VERSION = 1
# Encoded to tell two tokenizers apart when no hash is given: cases, digits, spaces, accents, code, an emoji.
_PROBE = "The quick brown fox, 12345 times;\n\tif x != y:  return Straße – 東京 🙂 <|im_start|></s> BOS"


@dataclass(frozen=True)
class TextEncoder:
    """A tokenizer as this package needs it: text to ids (BOS included where the model wants it) and the end token.

    ``fingerprint`` tells tokenizers apart in the cache; None derives one from the ids of a fixed text.
    """

    encode: Callable[[str], list[int]]
    eos_id: int
    fingerprint: str | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> TextEncoder:
        """Return the encoder of a model directory's tokenizer.

        Raises: InputError when the tokenizer names no end token.
        """
        if not tokenizer.eos_ids:
            raise InputError("tokenizer: it names no end-of-sequence token; documents cannot be told apart")
        return cls(tokenizer.encode, int(next(iter(tokenizer.eos_ids))))

    def identity(self) -> str:
        """Return what the cache is keyed by."""
        return self.fingerprint or f"{self.encode(_PROBE)}"


@dataclass(frozen=True)
class TokenizedDocuments:
    """``tokens`` int32 ``[N]``, documents one after another; ``starts`` int64 ``[M + 1]``, from 0 to N, increasing."""

    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        return len(self.starts) - 1

    def fingerprint(self) -> str:
        """Return a hash of every token and boundary: a checkpoint that carries it notices other data."""
        digest = hashlib.sha256(np.ascontiguousarray(self.tokens).tobytes())
        digest.update(np.ascontiguousarray(self.starts).tobytes())
        return digest.hexdigest()


NO_DOCUMENTS = TokenizedDocuments(np.zeros(0, np.int32), np.zeros(1, np.int64))


def tokenize(
    documents: Sequence[Document], encoder: TextEncoder, cache: Path | None = None, workers: int = 0
) -> TokenizedDocuments:
    """Return the documents' ids; with ``cache`` they are read from, or left in, a directory there.

    ``workers`` threads encode (the tokenizer works outside the interpreter lock); the result is the same.

    Raises: InputError when there is no document.
    """
    if not documents:
        raise InputError("tokenize: no documents given")
    if cache is None:
        return _encode(documents, encoder, workers)
    folder = Path(cache) / _cache_key(documents, encoder)
    if not folder.exists():
        _store(folder, _encode(documents, encoder, workers))
    return _load(folder)


def _encode(documents: Sequence[Document], encoder: TextEncoder, workers: int) -> TokenizedDocuments:
    def ids(document: Document) -> NDArray[np.int32]:
        found = encoder.encode(document.text)
        # A tokenizer whose post-processor ends the text itself must not end it twice.
        return np.array(found if found[-1:] == [encoder.eos_id] else [*found, encoder.eos_id], np.int32)

    if workers:
        with ThreadPoolExecutor(workers) as pool:
            pieces = list(pool.map(ids, documents))
    else:
        pieces = [ids(document) for document in documents]
    return TokenizedDocuments(np.concatenate(pieces), np.cumsum([0, *map(len, pieces)], dtype=np.int64))


def _cache_key(documents: Sequence[Document], encoder: TextEncoder) -> str:
    digest = hashlib.sha256(f"{_CACHE_VERSION}|{encoder.eos_id}|{encoder.identity()}|".encode())
    for document in documents:
        text = document.text.encode()
        digest.update(f"{len(text)}|".encode())
        digest.update(text)
    return digest.hexdigest()[:32]


def _store(folder: Path, tokenized: TokenizedDocuments) -> None:
    try:
        with new_directory(folder) as temporary:
            np.save(temporary / "tokens.npy", tokenized.tokens)
            np.save(temporary / "starts.npy", tokenized.starts)
    except (OSError, InputError):
        if not folder.exists():  # else another process finished the same work first
            raise


def _load(folder: Path) -> TokenizedDocuments:
    try:
        tokens = np.load(folder / "tokens.npy", mmap_mode="r", allow_pickle=False)
        starts = np.load(folder / "starts.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"token cache {folder}: damaged ({error}); remove it, it is rebuilt") from error
    whole = tokens.dtype == np.int32 and starts.dtype == np.int64 and len(starts) > 1 and starts[-1] == len(tokens)
    if not whole:
        raise InputError(f"token cache {folder}: damaged (sizes do not agree); remove it, it is rebuilt")
    return TokenizedDocuments(tokens, starts)
