"""Does the engine decode blocks as its source does? Its passes, one after the other, in the torch reference.

The engine decodes a text by blocks and says what each pass decided. The reference (`models.block_decoding`) then goes
through the same states: at each pass it looks at what the engine had decided until then, says what it would decide, and
takes over what the engine did decide. So one difference does not bring others about, and each pass is a comparison of
its own: the tokens, which positions are decided, how probable they are, and when the text ends.

Rounding may bring a difference about where two tokens, or a probability and the threshold, lie closer together than
rounding noise moves them. As in `export.verify` the noise is measured: two more references go through the same states
with perturbed sums. A difference is explained when noise of the measured size could have made the source do the same.

The engine may decide several times in one pass: positions that are predicted by a row which what was decided cannot
have changed need no other pass. The reference then looks several times for one pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from wrinklefree.artifact.diffusion_marker import DiffusionMarker
from wrinklefree.artifact.tables import QuantizedTable
from wrinklefree.engine import Engine, SamplingParams
from wrinklefree.engine import decoding_settings as engine_settings
from wrinklefree.export.tables import quantized_tables
from wrinklefree.export.verify import (
    NOISE_FACTOR,
    NOISE_RUNS,
    exported_factors,
    exported_tables,
    has_half_cache,
    rounding_noise,
)
from wrinklefree.models.block_decoding import BlockDecoder, DecodingSettings, Look, chosen
from wrinklefree.quant.bitlinear import full_strength, held_codes

# Probabilities beyond these log odds are all the same to float32, within a thousandth of their distance from 1.
_CERTAIN = 10.0
_FLOAT32 = 2e-3  # how far rounding a probability to float32 moves log odds within them
_FLOAT32_PROBABILITY = 1e-5  # and probabilities, their sums in another order included


@dataclass(frozen=True)
class BlockDifference:
    """A pass whose decisions are not the source's. ``pass_number`` from 1, ``position`` the first that differs.

    ``slack``: how far the source's log odds, logits or entropies would have to move for it to do the same;
    ``bound``: how far rounding noise moves them.
    """

    pass_number: int
    position: int
    what: str
    slack: float
    bound: float

    @property
    def explained(self) -> bool:
        return self.slack <= self.bound


@dataclass(frozen=True)
class BlockAgreement:
    """How the engine's block decoding follows the reference. ``looks``: forwards of the reference for its ``forwards``.

    ``confidence_difference`` is the largest between the two probabilities of a token, ``confidence_noise`` the largest
    that rounding noise makes.
    """

    tokens: int
    forwards: int
    looks: int
    confidence_difference: float
    confidence_noise: float
    differences: tuple[BlockDifference, ...]

    @property
    def passed(self) -> bool:
        close = self.confidence_difference <= NOISE_FACTOR * self.confidence_noise + _FLOAT32_PROBABILITY
        return close and all(difference.explained for difference in self.differences)

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        names = ("tokens", "forwards", "looks", "confidence_difference", "confidence_noise")
        return {
            **{name: getattr(self, name) for name in names},
            "differences": [{**asdict(each), "explained": each.explained} for each in self.differences],
        }


@dataclass
class _Noise:
    """The largest movements that noise made anywhere: of log odds, of the lead of a best token, of entropies."""

    odds: float = 0.0
    lead: float = 0.0
    entropy: float = 0.0
    confidence: float = 0.0

    def measure(self, source: Look, noisy: Look) -> None:
        self.odds = max(self.odds, _largest(_odds(source, source.best) - _odds(noisy, source.best)))
        self.lead = max(self.lead, _largest(_lead(source, source) - _lead(source, noisy)))
        self.entropy = max(self.entropy, _largest(source.entropy - noisy.entropy))
        moved = source.probability_of(source.best) - noisy.probability_of(source.best)
        self.confidence = max(self.confidence, _largest(moved))


@dataclass
class _Pass:
    """What the engine reported of a pass: position -> (token, probability)."""

    decided: dict[int, tuple[int, float]]
    waiting: dict[int, tuple[int, float]] = field(default_factory=dict)


def compare_block_decoding(
    engine: Engine,
    model: nn.Module,
    marker: DiffusionMarker,
    prompt: Sequence[int],
    num_tokens: int,
    settings: DecodingSettings | None = None,
    tables: Mapping[str, QuantizedTable] | None = None,
    ignore_eos: bool = True,
) -> BlockAgreement:
    """Decode ``num_tokens`` tokens behind ``prompt`` greedily with the engine and replay its passes in ``model``.

    ``marker``: that of the model, not of the packed directory. ``tables`` as in
    `export.verify.compare_engine_with_torch`; ``ignore_eos``: go on past the end of the text.

    Raises: InputError for a model without a marker, and as `Engine.generate`.
    """
    settings = settings or DecodingSettings()
    passes: list[_Pass] = []

    def keep(turn: Any, waiting: Any) -> None:
        passes.append(_Pass(*({one.position: (one.token, one.confidence) for one in each}
                              for each in (turn.decided, waiting))))  # fmt: skip

    ours = engine_settings.DecodingSettings("block", **asdict(settings))
    params = SamplingParams(max_tokens=num_tokens, temperature=0.0, top_p=1.0, seed=0, ignore_eos=ignore_eos)
    answer = engine.generate(list(prompt), params, ours, keep).run()
    ends = () if ignore_eos else tuple(engine.tokenizer.eos_ids)
    tables = quantized_tables(model, "q8") if tables is None else tables
    exported = exported_tables(model, tables), exported_factors(model)
    with exported[0], exported[1], full_strength(model), held_codes(model), torch.no_grad():

        def decoder() -> BlockDecoder:
            return BlockDecoder(model, marker, prompt, num_tokens, settings, ends, engine.context)

        replay = _Replay(decoder, settings, marker, has_half_cache(engine), model)
        for number, each in enumerate(passes, start=1):
            replay.follow(number, each)
        replay.finish(answer.tokens)
    return BlockAgreement(
        len(answer.tokens), answer.forwards, replay.source.forwards, replay.confidence, replay.noise.confidence,
        tuple(replay.differences()),
    )  # fmt: skip


class _Replay:
    """The source and its noisy copies, in the states that the engine went through."""

    def __init__(
        self,
        decoder: Callable[[], BlockDecoder],
        settings: DecodingSettings,
        marker: DiffusionMarker,
        half_cache: bool,
        model: nn.Module,
    ) -> None:
        self.source, self._noisy = decoder(), [decoder() for _ in range(NOISE_RUNS)]
        self._settings, self._model, self._half = settings, model, half_cache
        self._marker = marker
        self._random = torch.Generator().manual_seed(0)
        self.noise = _Noise()
        self.confidence = 0.0
        self._found: list[tuple[int, int, str, float, str]] = []

    def follow(self, number: int, engine: _Pass) -> None:
        """Go through one pass of the engine."""
        left = dict(engine.decided)
        looks = 0
        while left and set(left) & set(self.source.waiting):
            look = self._look()
            looks += 1
            taken = self._compare(number, look, left, engine.waiting)
            if looks == 1 and not self._causal:  # a causal row may be of an earlier pass
                self._compare_confidence(look, engine.waiting)
            for each in (self.source, *self._noisy):
                each.decide(taken)
            left = {position: found for position, found in left.items() if position not in taken}
        if left or not looks:
            position = min(left or {self._place(): (0, 0.0)})
            self._found.append((number, position, "a position that was not waited for, or nothing", math.inf, "odds"))

    def finish(self, tokens: Sequence[int]) -> None:
        """Compare the end: everything is decided, and the answer is that of the decided positions."""
        if self.source.waiting or self.source.answer != list(tokens):
            self._found.append((self.source.forwards, self._place(), "the end of the text", math.inf, "odds"))

    def differences(self) -> list[BlockDifference]:
        """Return what was found, against the noise of the whole text."""
        return [
            BlockDifference(number, position, what, slack, getattr(self.noise, kind) + _FLOAT32)
            for number, position, what, slack, kind in self._found
        ]

    @property
    def _causal(self) -> bool:
        return self._marker.rule.noised == "causal"

    def _independent(self, position: int) -> bool:
        """Whether the row that predicts a position may be the same before and after others of its block are decided."""
        first = self._marker.token_shift and position % (self._marker.block_size or 1) == 0
        return self._causal or first

    def _place(self) -> int:
        return next(iter(self.source.waiting), len(self.source.ids))

    def _look(self) -> Look:
        look = self.source.look()
        with rounding_noise(self._model, self._half, self._random):
            for each in self._noisy:
                self.noise.measure(look, each.look())
        return look

    def _compare(
        self, number: int, look: Look, left: Mapping[int, tuple[int, float]], waiting: Mapping[int, tuple[int, float]]
    ) -> dict[int, int]:
        """Return what is taken over from the engine after a look; note what the source would have done otherwise."""
        engine = {position: token for position, (token, _) in left.items() if position in look.positions}
        ours = chosen(look, self._settings)
        later = engine.keys() - ours.keys()
        if self._causal and self._settings.entropy_bound is None:
            # Which of them it decided first matters: what lies behind a decided token is predicted anew.
            order = _surest({**waiting, **left}, look.positions, self._settings)
            engine = {position: engine[position] for position in order if position in engine} or engine
        elif ours.keys() <= engine.keys() and all(map(self._independent, later)):
            engine = {position: engine[position] for position in ours}
        elif self._causal:
            engine = {position: engine[position] for position in chosen(_only(look, engine.keys()), self._settings)}
        if ours.keys() != engine.keys():
            slack, kind = _slack(look, engine.keys(), self._settings)
            first = min(ours.keys() ^ engine.keys())
            self._found.append((number, first, f"decided {sorted(engine)} and not {sorted(ours)}", slack, kind))
        for place, position in enumerate(look.positions):
            token = engine.get(position, look.best[place])
            if token != look.best[place]:
                lead = float(look.logits[place, look.best[place]] - look.logits[place, token])
                self._found.append((number, position, f"token {token} and not {look.best[place]}", lead, "lead"))
        self._compare_confidence(look, {position: left[position] for position in engine})
        return engine

    def _compare_confidence(self, look: Look, engine: Mapping[int, tuple[int, float]]) -> None:
        for place, position in enumerate(look.positions):
            token, probability = engine.get(position, (None, 0.0))
            if token is not None:
                source = float(look.logits[place].double().softmax(dim=-1)[token])
                self.confidence = max(self.confidence, abs(source - probability))


def _surest(
    reported: Mapping[int, tuple[int, float]], positions: Sequence[int], settings: DecodingSettings
) -> list[int]:
    """Return the positions that the rule decides first by the probabilities that the engine reported."""
    order = sorted((each for each in positions if each in reported), key=lambda each: -reported[each][1])
    sure = sum(reported[each][1] > settings.threshold for each in order)
    return order[: settings.tokens_per_forward or max(1, sure)]


def _slack(look: Look, decided: Any, settings: DecodingSettings) -> tuple[float, str]:
    """Return how far the source's values must move for ``decided`` to follow from them, and which values they are."""
    inside = torch.tensor([position in decided for position in look.positions])
    if not inside.any():
        return math.inf, "odds"
    rest = ~inside
    if settings.entropy_bound is not None:
        return _entropy_slack(look.entropy.double()[inside], look.entropy.double()[rest], settings.entropy_bound)
    odds = _odds(look, look.best)
    worst, next_best = float(odds[inside].min()), float(odds[rest].max()) if rest.any() else -math.inf
    ordered = max(0.0, (next_best - worst) / 2)
    if settings.tokens_per_forward is not None:
        right = int(inside.sum()) == min(settings.tokens_per_forward, len(inside))
        return (ordered if right else math.inf), "odds"
    at = settings.threshold
    bound = math.inf if at >= 1 else -math.inf if at <= 0 else math.log(at / (1 - at))
    by_threshold = max(0.0, bound - worst, next_best - bound)
    alone = max(ordered, next_best - bound) if int(inside.sum()) == 1 else math.inf
    return min(by_threshold, alone), "odds"


def _entropy_slack(inside: Tensor, rest: Tensor, bound: float) -> tuple[float, str]:
    size, total = len(inside), float(inside.sum())
    slack = [(total - float(inside.max()) - bound) / (size - 1) if size > 1 else 0.0]
    if len(rest):
        slack += [(float(inside.max()) - float(rest.min())) / 2, (bound - total) / size]
    return max(0.0, *slack), "entropy"


def _only(look: Look, positions: Any) -> Look:
    """Return the look with some of its positions alone."""
    places = [place for place, position in enumerate(look.positions) if position in positions]
    kept = [look.positions[place] for place in places]
    return Look.of(kept, look.rows, look.logits[places])


def _odds(look: Look, tokens: Sequence[int]) -> Tensor:
    """Return float64 [W], the log odds of a token for each position, as far as float32 tells them apart."""
    places = torch.tensor(list(tokens))[:, None]
    logits = look.logits.double().cpu()
    others = logits.scatter(1, places, -math.inf).logsumexp(dim=-1)
    return (logits.gather(1, places)[:, 0] - others).clamp(-_CERTAIN, _CERTAIN)


def _lead(pair: Look, look: Look) -> Tensor:
    """Return [W]: how far the best token of ``pair`` leads its second best, in the logits of ``look``."""
    tokens = pair.logits.topk(2, dim=-1).indices
    values = look.logits.gather(1, tokens)
    return values[:, 0] - values[:, 1]


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if len(values) else 0.0
