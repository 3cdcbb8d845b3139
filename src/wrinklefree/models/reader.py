"""transformers as a foreign reader of an exported directory: what anyone gets who calls `from_pretrained` on it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from wrinklefree.errors import VerificationError


class TransformersReader:
    """A directory, loaded by transformers alone; no class of ours takes part.

    It is asked for float32, whatever type the config names, because sums in bfloat16 are rounded as coarsely as the
    activations are; it grants that for plain weights and keeps packed ones in their own type.
    """

    name = "transformers"
    version = transformers.__version__

    def __init__(self, directory: Path) -> None:
        try:
            with redirect_stderr(StringIO()):  # its progress bars
                self._tokenizer: Any = AutoTokenizer.from_pretrained(directory)
                self._model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        except Exception as error:  # whatever it raises over a directory of ours is what a user of it would meet
            first = (str(error).strip().splitlines() or [""])[0]
            raise VerificationError(f"transformers: refused the directory ({type(error).__name__}: {first})") from error

    def tokenize(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        return [int(token) for token in self._tokenizer(text)["input_ids"]]

    @torch.no_grad()
    def greedy(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        """Return the most likely tokens, one after another, by its own cache."""
        given: list[int] = []
        read, cache = torch.tensor([list(prompt)]), None
        while len(given) < num_tokens:
            output = self._model(input_ids=read, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            given.append(int(output.logits[0, -1].argmax()))
            read = torch.tensor([given[-1:]])
        return given

    @torch.no_grad()
    def logits(self, tokens: Sequence[int], first: int) -> NDArray[np.float32]:
        """Return the logits ``[T - first, V]`` after ``tokens[first:]``."""
        output = self._model(input_ids=torch.tensor([list(tokens)]), use_cache=False)
        logits: NDArray[np.float32] = output.logits[0, first:].float().numpy()
        return logits

    def close(self) -> None:
        """Forget the model."""
        self._model = None
