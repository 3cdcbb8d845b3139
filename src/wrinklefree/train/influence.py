"""The companion that moves the mixture while training runs: by influence on a probe, or by the training loss.

Every ``every`` steps: pick some sequences of each source, find what each source is worth (`data.influence`) or how
high its loss is (`data.mixing.OnlineMixing`), and give the stream new weights from the first sequence of the next
step on. The change stands in the stream's own history, so every worker and every process deals the same sequences,
and a resumed run does too. The processes share the sequences among them and exchange what they found, so all of them
compute the same weights from the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn

from wrinklefree.data.batch import TokenBatch
from wrinklefree.data.build import TrainingData
from wrinklefree.data.influence import LayerGradients, datainf_scores, landmark_scores
from wrinklefree.data.mixing import F64, OnlineMixing, SlowMixture
from wrinklefree.data.packing import PackedSequences
from wrinklefree.data.permutation import key, permute
from wrinklefree.data.stream import PackedStream
from wrinklefree.errors import InputError
from wrinklefree.quant.bitlinear import held_codes
from wrinklefree.train.metrics import say
from wrinklefree.train.position import Position
from wrinklefree.train.recipe import InfluenceRecipe, Recipe
from wrinklefree.train.sample_gradients import SUBSETS, SequenceProbe

Row = tuple[PackedSequences, int]
_PICK, _PROBE, _PROJECT = 21, 22, 23  # purposes of random numbers


def build_influence(recipe: Recipe, student: nn.Module, data: TrainingData) -> Influence | None:
    """Return the companion, or None when the recipe wants none or has a single source.

    Raises: InputError when the bounds cannot be met, or something else of the recipe stands against it.
    """
    settings, names = recipe.influence, tuple(recipe.data.sources)
    if settings.kind == "none":
        return None
    if len(names) < 2:
        say(f"INFLUENCE IS OFF: the data has one source ({names[0]}), so there is no mixture to move.")
        return None
    if settings.kind == "distillation" and recipe.device.compile != "none":
        raise InputError("influence.kind=distillation: has not been tried on compiled layers; use datainf")
    settings.bounds.check(len(names))
    if recipe.curriculum.interpolation != "step" and any(phase.data for phase in recipe.curriculum.phases):
        raise InputError(
            f"influence: the curriculum's phases move the mixture by interpolation={recipe.curriculum.interpolation} "
            "at every step; use curriculum.interpolation=step, or phases without data"
        )
    companion = Influence(
        settings, student, data.stream, data.probe, names, recipe.step_tokens // recipe.data.sequence_length,
        recipe.seed, recipe.device.precision == "bf16-mixed",
    )  # fmt: skip
    say(companion.cost())
    return companion


@dataclass
class Influence:
    """``step_sequences``: sequences of one optimizer step over all processes. ``names`` of the stream's sources."""

    settings: InfluenceRecipe
    student: nn.Module
    stream: PackedStream
    probe: PackedSequences | None
    names: tuple[str, ...]
    step_sequences: int
    seed: int = 0
    bfloat16: bool = False
    name: str = "influence"
    _slow: SlowMixture = field(init=False)
    _online: OnlineMixing = field(init=False)

    def __post_init__(self) -> None:
        if self.settings.kind != "online" and self.probe is None:
            raise InputError(f"influence.kind={self.settings.kind}: needs a probe; set influence.probe or probe_share")
        if self.settings.kind != "online" and not SUBSETS[self.settings.parameters](self.student):
            raise InputError(f"influence.parameters={self.settings.parameters}: this run trains none of them")
        bounds = self.settings.bounds
        self._slow = SlowMixture(bounds, self.settings.lr, self.settings.smoothing)
        self._online = OnlineMixing(bounds, len(self.names), self.settings.memory)

    def before_step(self, position: Position, progress: float) -> None:
        """Nothing: the data of the step is dealt already."""

    def after_step(self, position: Position, figures: Mapping[str, float]) -> Mapping[str, float]:
        """Move the mixture when it is time, and return the weights in force and the latest scores."""
        done = position.step + 1
        if done >= self.settings.warmup and done % self.settings.every == 0:
            weights = self._online_weights(position) if self.settings.kind == "online" else self._weights(done)
            self.stream.set_weights(_from_first_process(weights).tolist(), position.sequences + self.step_sequences)
        out = {f"mixture/{name}": w for name, w in zip(self.names, self.stream.mixture.weights, strict=True)}
        scores = self._online.rewards if self.settings.kind == "online" else self._slow.scores
        if scores is not None:
            out |= {f"influence/{name}": float(s) for name, s in zip(self.names, scores, strict=True)}
        return out

    def cost(self) -> str:
        """Return a line that says what an update costs beside the steps between two of them."""
        settings, count = self.settings, self.settings.samples * len(self.names)
        if settings.kind == "online":
            work, sequences = "forwards", min(count, self.step_sequences)
        elif settings.kind == "datainf":
            work, sequences = f"forwards and backwards ({settings.parameters})", count + settings.probe_sequences
        else:
            work = f"forwards and backwards ({settings.parameters}), {count} embeddings of four layers"
            sequences = min(settings.landmarks, count) + settings.probe_sequences
        share = sequences / (settings.every * self.step_sequences)
        return (
            f"Influence ({settings.kind}): from step {settings.warmup}, every {settings.every} steps {sequences} more "
            f"{work}; that is {share:.1%} of the sequences trained on."
        )

    def state_dict(self) -> dict[str, Any]:
        return {"slow": self._slow.state_dict(), "online": self._online.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._slow.load_state_dict(state["slow"])
        self._online.load_state_dict(state["online"])

    def _weights(self, step: int) -> F64:
        scores = self._datainf(step) if self.settings.kind == "datainf" else self._distillation(step)
        return self._slow.update(self.stream.mixture.weights, scores)

    def _datainf(self, step: int) -> F64:
        looker = self._looker(step)
        rows, owners = self._picked(step)
        layers = [
            LayerGradients(train, probe, parameter.numel())
            for train, probe, parameter in zip(
                self._gradients(looker, rows), self._probe_gradient(looker), looker.parameters.values(), strict=True
            )
        ]
        return _means(datainf_scores(layers), owners, len(self.names))

    def _distillation(self, step: int) -> F64:
        looker = self._looker(step)
        rows, owners = self._picked(step)
        (embeddings,) = _shared(rows, lambda batch: [looker.embedding(batch)])
        # The sequences of a source stand together; every so many of them is a landmark, so each source has some.
        count = min(self.settings.landmarks, len(rows))
        landmarks = torch.arange(count) * len(rows) // count
        exact = self._gradients(looker, [rows[i] for i in landmarks.tolist()])
        probe = torch.cat(self._probe_gradient(looker))
        scores = landmark_scores(embeddings, landmarks, torch.cat(exact, 1).cpu(), probe.cpu())
        return _means(scores, owners, len(self.names))

    def _online_weights(self, position: Position) -> F64:
        """From the losses of the step's own sequences, ``samples`` for each source on average, or all there are."""
        count = min(self.settings.samples * len(self.names), self.step_sequences)
        places = [self.stream.locate(position.sequences + i * self.step_sequences // count) for i in range(count)]
        looker = self._looker(0)
        rows = [(self.stream.sources[source], index) for source, index in places]
        with held_codes(self.student):
            (losses,) = _shared(rows, lambda batch: [looker.loss(batch).reshape(1)])
        owners = [source for source, _ in places]
        counts = np.bincount(owners, minlength=len(self.names))
        return self._online.update(self.stream.mixture.weights, _means(losses[:, 0], owners, len(self.names)), counts)

    def _looker(self, step: int) -> SequenceProbe:
        device = next(self.student.parameters()).device

        def autocast() -> AbstractContextManager[Any]:
            return torch.autocast(device.type, torch.bfloat16) if self.bfloat16 else nullcontext()

        chosen = SUBSETS[self.settings.parameters](self.student)
        seed = key(self.seed, _PROJECT, step)
        return SequenceProbe(self.student, chosen, self.settings.projection, seed, autocast)

    def _picked(self, step: int) -> tuple[list[Row], list[int]]:
        """Return sequences of each source, drawn anew for each update, and the number of the source of each."""
        rows, owners = list[Row](), list[int]()
        for source, sequences in enumerate(self.stream.sources):
            found = _drawn(sequences, self.settings.samples, key(self.seed, _PICK, step, source))
            rows += found
            owners += [source] * len(found)
        return rows, owners

    def _probe_gradient(self, looker: SequenceProbe) -> list[Tensor]:
        """Return the mean gradient over the probe's sequences, the same ones at every update."""
        assert self.probe is not None
        rows = _drawn(self.probe, self.settings.probe_sequences, key(self.seed, _PROBE))
        return [gradients.mean(0) for gradients in self._gradients(looker, rows)]

    def _gradients(self, looker: SequenceProbe, rows: list[Row]) -> list[Tensor]:
        with held_codes(self.student):
            return _shared(rows, looker.gradient)


def _drawn(sequences: PackedSequences, count: int, order: int) -> list[Row]:
    """Return ``count`` different sequences, or all of them, in the order that the key names."""
    places = permute(np.arange(min(count, len(sequences))), len(sequences), order)
    return [(sequences, int(place)) for place in places]


def _shared(rows: list[Row], look: Callable[[TokenBatch], list[Tensor]]) -> list[Tensor]:
    """Return tensors [n, m]: what ``look`` finds in each sequence. Each process looks at its part and gets all."""
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if _spread() else (0, 1)
    # As many in each process, so that all of them take part in every exchange.
    mine = [rows[i % len(rows)] for i in range(rank, -(-len(rows) // world) * world, world)]
    found = [look(sequences.batch(np.array([index]))) for sequences, index in mine]
    columns = [torch.stack(column) for column in zip(*found, strict=True)]
    if world == 1:
        return columns
    out = []
    for column in columns:
        every = [torch.empty_like(column) for _ in range(world)]
        distributed.all_gather(every, column)
        out.append(torch.stack(every, 1).flatten(0, 1)[: len(rows)])  # process r has rows r, r + W, ...
    return out


def _spread() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _from_first_process(weights: F64) -> F64:
    """The same bits everywhere, also where two processes' arithmetic might differ."""
    if not _spread():
        return weights
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    sent = torch.from_numpy(weights).to(device)
    distributed.broadcast(sent, 0)
    return sent.cpu().numpy()


def _means(values: Tensor, owners: list[int], sources: int) -> F64:
    """The mean value of each source's sequences; nan where there is none."""
    sums = np.bincount(owners, values.double().cpu().numpy(), sources)
    counts = np.bincount(owners, minlength=sources)
    return np.divide(sums, counts, out=np.full(sources, np.nan), where=counts > 0)
