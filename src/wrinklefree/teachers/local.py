"""A teacher in this process: a frozen model that is loaded only when an objective first needs it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from wrinklefree.data.batch import TokenBatch
from wrinklefree.errors import InputError
from wrinklefree.quant.bitlinear import bit_linears
from wrinklefree.teachers.base import TopKOutput, refuse_states

_POSITIONS = 64  # whose logits exist at once
Forward = Callable[[nn.Module, TokenBatch, frozenset[str]], Any]


class LocalTeacher:
    """``load`` returns the model; ``forward`` is `models.forward.forward` (given, as this package lies beside it).

    ``student``: checked against the teacher when it loads. ``device``: where the teacher goes; None leaves it.
    ``top_k``: answer with so many tokens (`TopKOutput`) instead of states, as a remote or a cached teacher would.
    """

    def __init__(
        self,
        load: Callable[[], nn.Module],
        forward: Forward,
        student: nn.Module | None = None,
        device: torch.device | None = None,
        top_k: int | None = None,
    ) -> None:
        self.top_k = top_k
        self._load = load
        self._forward = forward
        self._student = student
        self._device = device
        self._model: nn.Module | None = None

    @property
    def loaded(self) -> bool:
        return self._model is not None

    @property
    def model(self) -> nn.Module:
        """Return the model, loading it first if need be.

        Raises: InputError when it cannot teach this student.
        """
        if self._model is None:
            # Loading must not move the generators: a resumed run loads at another step than an uninterrupted one.
            with torch.random.fork_rng():
                model = self._load()
            if self._student is not None:
                check_pair(model, self._student)
            model.requires_grad_(False)
            model.eval()
            self._model = model if self._device is None else model.to(self._device)
        return self._model

    @torch.no_grad()
    def forward(self, batch: TokenBatch, want: frozenset[str]) -> Any:
        if self.top_k is None:
            return self._forward(self.model, batch, want)
        refuse_states("local with top_k", want)
        return most_probable(self._forward(self.model, batch, want), self.top_k)

    def release(self) -> None:
        self._model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def most_probable(output: Any, top_k: int) -> TopKOutput:
    """Return the ``top_k`` most probable next tokens of a `models.forward.ForwardOutput`, a few positions at a time.

    Equally probable tokens come in the order of `torch.topk`; a vocabulary smaller than ``top_k`` is given whole.
    """
    batch, length, _ = output.final.shape
    ids, values = [], []
    for states in output.final.flatten(0, 1).split(_POSITIONS):
        logits = output.head(states).float()
        if output.softcap is not None:
            logits = output.softcap * torch.tanh(logits / output.softcap)
        top = torch.log_softmax(logits, dim=-1).topk(min(top_k, logits.shape[-1]), dim=-1)
        ids.append(top.indices)
        values.append(top.values)
    return TopKOutput(torch.cat(ids).view(batch, length, -1), torch.cat(values).view(batch, length, -1))


def check_pair(teacher: nn.Module, student: nn.Module) -> None:
    """Refuse a teacher that has nothing to teach.

    Raises: InputError when it is the student itself, has the same ternary weights, or another vocabulary.
    """
    if teacher is student:
        raise InputError("teacher: it is the student itself; give the original model")
    theirs, ours = _vocabulary(teacher), _vocabulary(student)
    if theirs != ours:
        raise InputError(
            f"teacher: its vocabulary has {theirs} tokens, the student's {ours}; token-level distillation needs the "
            "same tokenizer (a teacher of the same family)"
        )
    if _same_ternary(teacher, student):
        raise InputError(
            "teacher: its ternary weights are the student's own, so the student is already as good; give the "
            "full-precision model"
        )


def _vocabulary(model: nn.Module) -> int:
    return int(model.get_submodule("model.embed_tokens").num_embeddings)  # type: ignore[arg-type]


def _same_ternary(teacher: nn.Module, student: nn.Module) -> bool:
    theirs, ours = dict(bit_linears(teacher)), dict(bit_linears(student))
    if not theirs or theirs.keys() != ours.keys():
        return False
    for name, layer in ours.items():
        other = theirs[name]
        if layer.weight.shape != other.weight.shape or layer.spec != other.spec:
            return False
        for a, b in zip(layer.ternary(), other.ternary(), strict=True):
            if not torch.equal(a.cpu(), b.cpu()):
                return False
    return True
