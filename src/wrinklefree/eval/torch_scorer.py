"""The scorer of checkpoints and Hugging Face models: torch, several requests in one forward.

Rows are filled up behind their end. A causal model's states do not depend on what follows, so no mask is needed.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wrinklefree.artifact.diffusion_marker import DiffusionMarker
from wrinklefree.artifact.tokenizer import Tokenizer
from wrinklefree.engine.decoding import Decided
from wrinklefree.engine.generation import Answer
from wrinklefree.engine.sampling import SamplingParams
from wrinklefree.errors import InputError
from wrinklefree.eval.loss import LogitsFunction, torch_logits, without_tokens
from wrinklefree.eval.masked_losses import torch_masked_losses
from wrinklefree.eval.scorer import Diffusion, Request, Scores, Settings, WithTokenizer, checked

_AHEAD_TOKENS = 8192  # of requests that are put into batches by length together; their scores come at one time
_TOKENS = 2048  # of a batch, filling included
_LOGITS = 1 << 26  # of a batch: 256 MB
_ROWS = 64  # whose float64 logits are held at once


class TorchScorer(WithTokenizer):
    """A `Scorer` over a Hugging Face causal model in evaluation mode; a ternary one belongs in `full_strength`."""

    runs_on = "torch"

    def __init__(self, name: str, model: Any, tokenizer: Any, dlm: dict[str, Any] | None = None) -> None:
        """``tokenizer``: of Hugging Face. ``dlm``: the marker of a diffusion model, as in config.json."""
        super().__init__(own_tokenizer(tokenizer))
        self.name, self.model = name, model
        self.context: int | None = getattr(model.config, "max_position_embeddings", None)
        self.vocabulary: int = model.get_output_embeddings().weight.shape[0]
        self.ends = _ends(model, self.tokenizer)
        self.diffusion = None if dlm is None else _diffusion(name, model, self.tokenizer, self.ends, dlm)
        self._never = [t for t in (self.diffusion.never if self.diffusion else ()) if t < self.vocabulary]
        self.logits: LogitsFunction | None = torch_logits(model)
        if self.diffusion is not None:
            self.logits = without_tokens(torch_logits(model), self.diffusion.never)
        self._cuts_rows = "logits_to_keep" in inspect.signature(model.forward).parameters

    def describe(self) -> dict[str, Any]:
        """See `Scorer.describe`."""
        return described(self.model)

    def score(self, requests: Sequence[Request]) -> Iterator[Scores]:
        """See `Scorer.score`; requests that differ in the last token only are computed once."""
        for request in requests:
            checked(self, request, self.vocabulary)
        return self._score(requests)

    def _score(self, requests: Sequence[Request]) -> Iterator[Scores]:
        sizes = np.cumsum([len(request.tokens) for request in requests]) // _AHEAD_TOKENS
        for part in np.split(np.arange(len(requests)), np.flatnonzero(np.diff(sizes)) + 1):
            found: dict[int, Scores] = {}
            for numbers in self._batches([requests[i] for i in part]):
                found |= zip(numbers, self._forward([requests[part[i]] for i in numbers]), strict=True)
            yield from (found[i] for i in range(len(part)))

    def _batches(self, requests: Sequence[Request]) -> Iterator[list[int]]:
        """Yield the numbers of requests that go together, longest first."""
        order = sorted(
            range(len(requests)), key=lambda i: (-len(requests[i].tokens), requests[i].tokens[:-1].tobytes())
        )
        batch: list[int] = []
        inputs: set[bytes] = set()
        for i in order:
            row = requests[i].tokens[:-1].tobytes()
            longest = len(requests[batch[0]].tokens) if batch else 0
            size = (len(inputs | {row})) * longest
            if batch and (size > _TOKENS or size * self.vocabulary > _LOGITS):
                yield batch
                batch, inputs = [], set()
            batch.append(i)
            inputs.add(row)
        if batch:
            yield batch

    @torch.inference_mode()
    def _forward(self, requests: Sequence[Request]) -> list[Scores]:
        rows: dict[bytes, int] = {}
        places = [rows.setdefault(request.tokens[:-1].tobytes(), len(rows)) for request in requests]
        longest = max(len(request.tokens) for request in requests) - 1
        filled = np.zeros((len(rows), longest), np.int64)
        for place, request in zip(places, requests, strict=True):
            filled[place, : len(request.tokens) - 1] = request.tokens[:-1]
        begin = min(request.first for request in requests) - 1
        options = {"logits_to_keep": longest - begin} if self._cuts_rows else {}
        ids = torch.from_numpy(filled).to(next(self.model.parameters()).device)
        logits = self.model(input_ids=ids, use_cache=False, **options).logits
        begin = longest - logits.shape[1]
        return [
            self._scores(logits[place, request.first - 1 - begin : len(request.tokens) - 1 - begin], request)
            for place, request in zip(places, requests, strict=True)
        ]

    def _scores(self, logits: Tensor, request: Request) -> Scores:
        """Return the scores by the logits [N, V] of the scored tokens."""
        targets = torch.from_numpy(request.tokens[request.first :]).to(logits.device)
        losses, greedy = [], []
        for rows, wanted in zip(logits.split(_ROWS), targets.split(_ROWS), strict=True):
            rows = self._allowed(rows)
            losses.append(nn.functional.cross_entropy(rows.double(), wanted, reduction="none"))
            greedy.append(rows.argmax(dim=1) == wanted)
        return Scores(torch.cat(losses).cpu().numpy(), torch.cat(greedy).cpu().numpy())

    def _allowed(self, rows: Tensor) -> Tensor:
        rows = rows.float()
        if self._never:
            rows = rows.clone()
            rows[:, self._never] = float("-inf")
        return rows

    def generate(self, prompts: Sequence[Sequence[int]], settings: Settings) -> Iterator[str]:
        """See `Scorer.generate`; token by token, also by a diffusion model."""
        for prompt in prompts:
            room = settings.max_tokens if self.context is None else self.context - len(prompt)
            if not prompt or room < 1:
                raise InputError(f"prompt: found {len(prompt)} tokens, {self.name} has a context of {self.context}")
            yield self._continue(list(prompt), settings, min(room, settings.max_tokens))

    @torch.inference_mode()
    def _continue(self, prompt: list[int], settings: Settings, limit: int) -> str:
        params = SamplingParams(temperature=settings.temperature, top_p=settings.top_p, stop=settings.stop)
        answer = Answer(len(prompt), limit, params, self.ends, self.tokenizer.decoder())
        device = next(self.model.parameters()).device
        draws = torch.Generator().manual_seed(settings.seed)
        text, cache, ids = "", None, prompt
        for position in range(len(prompt), len(prompt) + limit):
            out = self.model(input_ids=torch.tensor([ids], device=device), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            token = _chosen(self._allowed(out.logits[0, -1:])[0].cpu(), settings, draws)
            steps = answer.take([Decided(position, token)], 1)
            text += "".join(step.text for step in steps)
            if answer.finish_reason is not None:
                break
            ids = [token]
        return text


def _chosen(logits: Tensor, settings: Settings, draws: torch.Generator) -> int:
    """Return the token chosen by logits [V]: temperature first, then the smallest set of at least top_p."""
    if settings.temperature == 0.0:
        return int(logits.argmax())
    probabilities, order = (logits.double() / settings.temperature).softmax(dim=0).sort(descending=True, stable=True)
    probabilities[probabilities.cumsum(dim=0) - probabilities >= settings.top_p] = 0.0
    return int(order[torch.multinomial(probabilities, 1, generator=draws)])


def described(model: Any) -> dict[str, Any]:
    """Return how a model runs in torch, as `Scorer.describe`."""
    weight = next(model.parameters())
    return {
        "dtype": str(weight.dtype).removeprefix("torch."),
        "device": str(weight.device),
        "threads": torch.get_num_threads(),
        "context": getattr(model.config, "max_position_embeddings", None),
    }


def own_tokenizer(tokenizer: Any) -> Tokenizer:
    """Return what reads the files of a Hugging Face tokenizer as the engine does."""
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save_pretrained(directory)
        return Tokenizer.load(directory)


def _ends(model: Any, tokenizer: Tokenizer) -> frozenset[int]:
    """Return the tokens that end a text: the generation configuration's, the model's, the tokenizer's own."""
    found = {*tokenizer.eos_ids}
    for config in (getattr(model, "generation_config", None), model.config):
        ids = getattr(config, "eos_token_id", None)
        found.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
    return frozenset(found)


def _diffusion(name: str, model: Any, tokenizer: Tokenizer, ends: frozenset[int], dlm: dict[str, Any]) -> Diffusion:
    marker = DiffusionMarker.of(dlm, name)
    pad = tokenizer.pad_id
    unwritten = pad is not None and pad not in ends and pad != marker.mask_token_id
    never = (marker.mask_token_id, *([pad] if unwritten and pad is not None else []))
    return Diffusion(dlm, torch_masked_losses(model, marker, never), never)
