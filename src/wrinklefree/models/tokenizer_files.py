"""A tokenizer of transformers from the bytes of its files, as readers of foreign formats give them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from wrinklefree.artifact.files import write_bytes
from wrinklefree.errors import FormatError


def load_tokenizer(files: Mapping[str, bytes], place: str) -> tuple[PreTrainedTokenizerBase, GenerationConfig | None]:
    """Return the tokenizer, and the settings of generation where there are any.

    Raises: FormatError naming ``place`` when there is no tokenizer.
    """
    if "tokenizer.json" not in files:
        raise FormatError(f"{place}: has no tokenizer, which a Hugging Face model needs")
    with tempfile.TemporaryDirectory() as directory:
        for name, data in files.items():
            write_bytes(Path(directory) / name, data)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory)
        if "generation_config.json" not in files:
            return tokenizer, None
        return tokenizer, GenerationConfig.from_pretrained(directory)
