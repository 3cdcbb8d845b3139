"""Does the exported model do what its source does? Codes re-read, logits compared, greedy tokens compared.

The engine's ternary products are exact integers, torch's are float32 sums, and quantising activations to int8 turns a
last bit into a whole step now and then; thirty layers amplify that. (Measured on SmolLM2-135M with plainly rounded
weights: torch in float32 against torch in float64 has a lowest cosine of logits of 0.994.) So no fixed tolerance is
right for every model. The noise is measured instead: the source runs again with the input of every ternary layer
perturbed by `SUM_NOISE`, and with keys and values perturbed by `CACHE_NOISE` when the engine keeps them in float16.
The engine may stray from the source as far as such noise does, not further; a greedy token that differs counts as
explained only when the source's own two logits lie closer together than the noise moves them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wrinklefree.artifact.config import parse_config
from wrinklefree.artifact.manifest import PackedModel, open_packed
from wrinklefree.artifact.packing import unpack_codes, unpack_group_scales
from wrinklefree.artifact.tables import QuantizedTable, unpack_table
from wrinklefree.engine import Engine, SamplingParams
from wrinklefree.engine.decoding_settings import DecodingSettings
from wrinklefree.errors import VerificationError
from wrinklefree.export.tables import quantized_tables
from wrinklefree.export.walk import Table, TernaryLayer, walk
from wrinklefree.quant.bitlinear import bit_linears, full_strength
from wrinklefree.quant.low_rank import FACTORS, low_rank_linears

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "In 1969, 2 people walked on the Moon; they stayed for",
)
# Enough for any model; one that noise alone moves further has to stay within `NOISE_FACTOR` times that.
MIN_COSINE = 0.999
NOISE_FACTOR = 3.0
# Relative standard deviations: reordering a float32 sum of about a thousand terms, and rounding to float16.
SUM_NOISE = 2.0**-20
CACHE_NOISE = 2.0**-12
NOISE_RUNS = 2


@dataclass(frozen=True)
class Difference:
    """The first place of a text where the engine's greedy token is not the source's.

    ``logit_gap`` is how far apart the source's logits of the two tokens are, ``error_bound`` how far noise of the
    size of float32 rounding moves such a pair.
    """

    prompt: str
    position: int
    engine_token: str
    source_token: str
    logit_gap: float
    error_bound: float

    @property
    def explained(self) -> bool:
        return self.logit_gap <= self.error_bound


@dataclass(frozen=True)
class Agreement:
    """How closely the engine follows its source over all prompts and the tokens generated from them.

    ``noise_cosine_min`` is how far rounding noise alone moves the source's logits. ``greedy_tokens_equal`` counts,
    for each prompt, the tokens before its first difference; ``same_choices`` counts the tokens of the engine's text
    that the source, reading the same text, would have chosen too.
    """

    logit_cosine_min: float
    noise_cosine_min: float
    logit_max_abs_difference: float
    greedy_tokens_equal: int
    same_choices: int
    greedy_tokens: int
    differences: tuple[Difference, ...]

    @property
    def needed_cosine(self) -> float:
        """The lowest cosine of logits that counts as the same model."""
        return min(MIN_COSINE, 1 - NOISE_FACTOR * (1 - self.noise_cosine_min))

    @property
    def passed(self) -> bool:
        return self.logit_cosine_min >= self.needed_cosine and all(d.explained for d in self.differences)

    def to_json(self) -> dict[str, Any]:
        """Return the figures under the names of the quickstart's report."""
        return {
            "logit_cosine_min": self.logit_cosine_min,
            "noise_cosine_min": self.noise_cosine_min,
            "logit_max_abs_difference": self.logit_max_abs_difference,
            "greedy_tokens_equal": self.greedy_tokens_equal,
            "same_choices": self.same_choices,
            "of": self.greedy_tokens,
            "differences": [{**asdict(d), "explained": d.explained} for d in self.differences],
        }


@dataclass(frozen=True)
class CodesCheck:
    """What re-reading the written file found: ternary layers compared, and the share of zeros on either side."""

    layers: int
    zeros_source: float
    zeros_written: float


def check_codes(directory: Path, model: nn.Module, tables: Mapping[str, QuantizedTable] | None = None) -> CodesCheck:
    """Return the result of reading a packed directory back and comparing each code and scale with the source.

    ``tables``: what the embedding and an untied head were written as; compared when given.

    Raises: VerificationError naming the first part that differs.
    """
    packed = open_packed(directory)
    zeros_source = zeros_written = weights = layers = 0
    for entry in walk(model):
        if isinstance(entry, Table) and tables is not None:
            _check_table(packed, entry, tables[entry.name])
        if not isinstance(entry, TernaryLayer):
            continue
        codes, scales = entry.codes_and_scales()
        written = unpack_codes(packed.weights.array(f"{entry.name}.weight"), *entry.shape, packed.info.layout)
        stored = packed.weights.array(f"{entry.name}.weight_scale")
        if packed.info.granularity == "group":
            stored = unpack_group_scales(stored, entry.shape[0]).astype(np.float32)
        if not np.array_equal(codes, written) or not np.array_equal(scales, stored):
            raise VerificationError(f"{entry.name}: the file's codes or scales are not the source's")
        _check_factors(packed, entry)
        zeros_source += codes.size - int(np.count_nonzero(codes))
        zeros_written += written.size - int(np.count_nonzero(written))
        weights += codes.size
        layers += 1
    return CodesCheck(layers, zeros_source / weights, zeros_written / weights)


def _check_table(packed: PackedModel, entry: Table, expected: QuantizedTable) -> None:
    codes = packed.weights.array(f"{entry.name}.weight")
    scales = None if expected.scales is None else packed.weights.array(f"{entry.name}.weight_scale")
    if not np.array_equal(unpack_table(codes, scales, *entry.shape, expected.format).values(), expected.values()):
        raise VerificationError(f"{entry.name}: the file's table is not what the source's became")


def _check_factors(packed: PackedModel, entry: TernaryLayer) -> None:
    if not entry.rank:
        return  # that the file has none either is in its config.json
    for factor, values in zip(FACTORS, entry.factors(), strict=True):
        if not np.array_equal(packed.weights.array(f"{entry.name}.{factor}"), values.astype(np.float16)):
            raise VerificationError(f"{entry.name}.{factor}: the file's values are not the source's in float16")


def compare_engine_with_torch(
    engine: Engine,
    model: nn.Module,
    prompts: Sequence[str] = PROMPTS,
    greedy_tokens: int = 32,
    tables: Mapping[str, QuantizedTable] | None = None,
) -> Agreement:
    """Return how an engine agrees with the torch model it was exported from, at full quantisation strength.

    For each prompt the engine generates ``greedy_tokens`` tokens, past the end of the text where need be; then both
    score prompt and tokens in one pass, without the tokens that the engine never gives out. For the time of the
    comparison the torch model carries the ``tables`` that were written (None: its own in 8 bits), and its low-rank
    factors as they were written. Load the engine with ``kv_type="float32"`` for the sharpest answer.
    """
    half_cache = has_half_cache(engine)
    cosine, noise_cosine, largest, equal, same, total = 1.0, 1.0, 0.0, 0, 0, 0
    differences = []
    banned = list(engine.banned_tokens)  # a diffusion model's MASK
    given = np.delete(np.arange(engine.vocab_size), banned) if banned else slice(None)
    tables = quantized_tables(model, "q8") if tables is None else tables
    with exported_tables(model, tables), exported_factors(model), full_strength(model), torch.no_grad():
        for prompt in prompts:
            start = engine.tokenizer.encode(prompt)[: max(1, engine.context // 2)]
            tokens = _greedy(engine, start, greedy_tokens)
            # The last token is only predicted, never read, so that prompt and tokens may fill the context.
            read = [*start, *tokens][:-1]
            source, ours = _source_logits(model, read), engine.logits(read)
            noisy = _noisy_logits(model, read, half_cache)
            for logits in (source, *noisy):
                logits[:, banned] = -np.inf
            cosine = min(cosine, lowest_cosine(source[:, given], ours[:, given]))
            noise_cosine = min(noise_cosine, *(lowest_cosine(source[:, given], other[:, given]) for other in noisy))
            largest = max(largest, float(np.abs(source[:, given] - ours[:, given]).max()))
            chosen = source[len(start) - 1 :].argmax(axis=1)
            found = _first_difference(chosen, tokens)
            same += int((chosen == np.asarray(tokens)).sum())
            equal += len(tokens) if found is None else found
            total += len(tokens)
            if found is not None:
                place = len(start) - 1 + found
                pair = (tokens[found], int(source[place].argmax()))
                moved = max(float(np.abs(_gaps(other, pair) - _gaps(source, pair)).max()) for other in noisy)
                wrong, right = (engine.tokenizer.decode([token], skip_special=False) for token in pair)
                differences.append(Difference(prompt, found, wrong, right, float(_gaps(source, pair)[place]), moved))
    return Agreement(cosine, noise_cosine, largest, equal, same, total, tuple(differences))


@contextmanager
def exported_tables(model: nn.Module, tables: Mapping[str, QuantizedTable]) -> Iterator[None]:
    """Give ``model`` the embedding and head a reader of the export sees, and restore its own afterwards."""
    entries = [entry for entry in walk(model) if isinstance(entry, Table)]
    own = [entry.parameter.data for entry in entries]
    try:
        for entry in entries:
            entry.parameter.data = torch.from_numpy(tables[entry.name].values()).to(entry.parameter.device)
        yield
    finally:
        for entry, data in zip(entries, own, strict=True):
            entry.parameter.data = data


@contextmanager
def exported_factors(model: nn.Module) -> Iterator[None]:
    """Give ``model`` the low-rank factors a reader of the export sees, and restore its own afterwards."""
    factors = [factor for _, layer in low_rank_linears(model) for factor in (layer.low_rank_u, layer.low_rank_v)]
    own = [factor.data for factor in factors]
    try:
        for factor in factors:
            factor.data = factor.data.half().to(factor.dtype)
        yield
    finally:
        for factor, data in zip(factors, own, strict=True):
            factor.data = data


def has_half_cache(engine: Engine) -> bool:
    """Whether an engine keeps keys and values in 16 bits or fewer."""
    config = parse_config(engine.config, "config.json")
    values = 2 * engine.context * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return engine.kv_bytes < 3 * values


def _greedy(engine: Engine, prompt: list[int], num_tokens: int) -> list[int]:
    params = SamplingParams(max_tokens=num_tokens, temperature=0.0, top_p=1.0, seed=0, ignore_eos=True)
    return engine.generate(prompt, params, DecodingSettings("ar")).run().tokens


def _source_logits(model: nn.Module, tokens: Sequence[int]) -> NDArray[np.float32]:
    device = next(model.parameters()).device
    output = model(input_ids=torch.tensor([list(tokens)], device=device), use_cache=False)
    logits: NDArray[np.float32] = output.logits[0].float().cpu().numpy()
    return logits


def lowest_cosine(source: NDArray[np.float32], ours: NDArray[np.float32]) -> float:
    """Return the lowest cosine between rows of two arrays ``[T, V]``."""
    a, b = source.astype(np.float64), ours.astype(np.float64)
    product = (a * b).sum(axis=1)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float((product / np.maximum(norms, 1e-30)).min())


def _noisy_logits(model: nn.Module, tokens: Sequence[int], half_cache: bool) -> list[NDArray[np.float32]]:
    """Return the source's logits under rounding noise, from independent draws."""
    with rounding_noise(model, half_cache, torch.Generator().manual_seed(0)):
        return [_source_logits(model, tokens) for _ in range(NOISE_RUNS)]


@contextmanager
def rounding_noise(model: nn.Module, half_cache: bool, generator: torch.Generator) -> Iterator[None]:
    """Let ``model`` compute with rounding noise: sums in another order, keys and values in float16."""

    def perturbed(values: Tensor, size: float) -> Tensor:
        return values * (1 + size * torch.randn(values.shape, generator=generator).to(values))

    handles = []
    for name, layer in bit_linears(model):
        handles.append(layer.register_forward_pre_hook(lambda _, x: (perturbed(x[0], SUM_NOISE), *x[1:])))
        if half_cache and name.endswith(("k_proj", "v_proj")):
            handles.append(layer.register_forward_hook(lambda _, x, y: perturbed(y, CACHE_NOISE)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first_difference(chosen: NDArray[np.int64], tokens: Sequence[int]) -> int | None:
    unequal = np.flatnonzero(chosen != np.asarray(tokens))
    return int(unequal[0]) if unequal.size else None


def _gaps(logits: NDArray[np.float32], pair: tuple[int, int]) -> NDArray[np.float32]:
    """How much the second token of a pair leads the first, at each position."""
    return logits[:, pair[1]] - logits[:, pair[0]]
