"""Whether two models, or two ways of computing one model, are the same: logits, gradients, and some training steps.

Shapes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wrinklefree.artifact.manifest import model_format, read_config
from wrinklefree.data.batch import IGNORE_INDEX, TokenBatch
from wrinklefree.errors import InputError, unknown_name
from wrinklefree.eval.text import evaluation_documents, evaluation_text
from wrinklefree.eval.torch_scorer import own_tokenizer
from wrinklefree.models.forward import LOGITS, forward
from wrinklefree.objectives import NextToken
from wrinklefree.objectives.manager import ObjectiveManager, Tally, Term
from wrinklefree.optim.build import OptimizerConfig, build_optimizer
from wrinklefree.quant.bitlinear import bit_linears, quant_strength
from wrinklefree.quant.products import Products, set_products
from wrinklefree.train.compiled import checkpoint_layers

# Below this a gradient is no direction: both are then called the same (a layer that nothing reaches).
_NO_GRADIENT = 1e-20
_ROWS = 256  # of logits compared at once


@dataclass(frozen=True)
class LogitsComparison:
    """Over all positions that are no padding. A row of logits is compared less its mean, which softmax ignores.

    ``cosine``: of the least alike row; ``mean_cosine``: of the average one. ``max_abs``: largest difference of two
    logits. ``top1``: share of rows with the same largest logit.
    """

    cosine: float
    mean_cosine: float
    max_abs: float
    top1: float
    positions: int


@dataclass(frozen=True)
class GradientsComparison:
    """Of the next-token loss. ``cosine``: of the least alike parameter, which is ``parameter``.

    ``cosines``: by parameter. ``max_relative``: largest |a - b| / |a| of a parameter. ``only_one``: parameters that
    one of the models lacks; they are not compared.
    """

    cosine: float
    parameter: str
    max_relative: float
    losses: tuple[float, float]
    cosines: Mapping[str, float] = field(repr=False)
    only_one: tuple[str, ...] = ()


@dataclass(frozen=True)
class StepsComparison:
    """Of training both on the same batches. ``losses``: of each step. ``max_loss_difference``: largest in a step.

    ``way``: cosine of how far the parameters of each went. ``logits``: compared after the last step.
    """

    steps: int
    losses: tuple[tuple[float, float], ...]
    max_loss_difference: float
    way: float
    logits: LogitsComparison


def load_model(source: str) -> tuple[nn.Module, Callable[[str], list[int]]]:
    """Return a torch model, ternary ones at full strength, and the encoder of its tokenizer.

    Raises: InputError when nothing is there, it cannot be read, or it is a packed model.
    """
    from wrinklefree.models.io import load_checkpoint, load_source

    kind = model_format(read_config(source)) if Path(source).is_dir() else ""
    if kind == "packed":
        raise InputError(f"{source}: a packed model has no gradients; compare it with wf eval {source} --teacher MODEL")
    model, tokenizer = load_checkpoint(source)[:2] if kind == "checkpoint" else load_source(source)
    if next(bit_linears(model), None) is not None:
        quant_strength(model).value = 1.0
    return model, own_tokenizer(tokenizer).encode


def text_batches(text: str, encode: Callable[[str], list[int]], window: int, tokens: int) -> list[TokenBatch]:
    """Return about ``tokens`` tokens of a text (see `eval.text`) as batches of one window, spread over the text.

    Raises: InputError when the text cannot be read.
    """
    windows = evaluation_text(evaluation_documents(text), encode, window, name=text).limited(tokens).windows
    batches = []
    for each in windows:
        ids = torch.from_numpy(each.tokens)[None]
        labels = ids.clone()
        labels[:, 0] = IGNORE_INDEX
        zeros = torch.zeros_like(ids, dtype=torch.int32)
        batches.append(TokenBatch(ids, labels, torch.arange(ids.shape[1])[None], zeros))
    return batches


def compare_logits(a: nn.Module, b: nn.Module, batches: Sequence[TokenBatch]) -> LogitsComparison:
    """Return how alike the logits of two models are on ``batches``.

    Raises: InputError when the vocabularies differ; ArithmeticError when logits are not finite.
    """
    cosines: list[Tensor] = []
    largest, agreed = 0.0, 0
    for batch in batches:
        with torch.no_grad():
            left, right = (_logits(model, batch) for model in (a, b))
        if left.shape != right.shape:
            raise InputError(f"the models have {left.shape[-1]} and {right.shape[-1]} logits for a token")
        for at in range(0, len(left), _ROWS):
            x, y = (each[at : at + _ROWS].double() for each in (left, right))
            if not bool(x.isfinite().all() and y.isfinite().all()):
                raise ArithmeticError("the logits of one of the models are not finite")
            largest = max(largest, float((x - y).abs().max()))
            agreed += int((x.argmax(dim=-1) == y.argmax(dim=-1)).sum())
            x, y = (each - each.mean(dim=-1, keepdim=True) for each in (x, y))
            cosines.append(torch.nn.functional.cosine_similarity(x, y, dim=-1))
    every = torch.cat(cosines)
    return LogitsComparison(float(every.min()), float(every.mean()), largest, agreed / len(every), len(every))


def compare_gradients(a: nn.Module, b: nn.Module, batches: Sequence[TokenBatch]) -> GradientsComparison:
    """Return how alike the gradients of the next-token loss over ``batches`` are; gradients are cleared after."""
    (left, loss_a), (right, loss_b) = (_gradients(model, batches) for model in (a, b))
    cosines: dict[str, float] = {}
    relative = 0.0
    for name in left.keys() & right.keys():
        x, y = left[name].double().flatten(), right[name].double().flatten()
        if x.shape != y.shape:
            raise InputError(f"{name}: the models have it in the shapes {left[name].shape} and {right[name].shape}")
        lengths = float(x.norm()), float(y.norm())
        if max(lengths) < _NO_GRADIENT:
            cosines[name] = 1.0
            continue
        cosines[name] = float(x @ y) / (lengths[0] * lengths[1]) if min(lengths) > 0 else 0.0
        relative = max(relative, float((x - y).norm()) / max(lengths[0], _NO_GRADIENT))
    if not cosines:
        raise InputError("the models have no parameter of the same name; their gradients cannot be compared")
    worst = min(cosines, key=lambda name: (cosines[name], name))
    only = tuple(sorted(left.keys() ^ right.keys()))
    return GradientsComparison(cosines[worst], worst, relative, (loss_a, loss_b), cosines, only)


def run_n_steps_and_compare(
    a: nn.Module,
    b: nn.Module,
    batches: Sequence[TokenBatch],
    steps: int,
    optimizer: OptimizerConfig | None = None,
) -> StepsComparison:
    """Train both, in place, for ``steps`` plain steps of a batch each (``batches`` in turn; not `train.loop`).

    ``optimizer``: of both; None is AdamW at its default rate. Adam's first steps are the signs of gradients, so
    that differences of the size of a rounding error grow where a gradient is next to zero.
    """
    config = optimizer or OptimizerConfig()
    before = [{name: p.detach().clone() for name, p in model.named_parameters()} for model in (a, b)]
    losses = [_train(model, batches, steps, config) for model in (a, b)]
    ways = [
        _way(model, start, before[0].keys() & before[1].keys()) for model, start in zip((a, b), before, strict=True)
    ]
    cosine = float(ways[0] @ ways[1] / (ways[0].norm() * ways[1].norm()).clamp(min=_NO_GRADIENT))
    pairs = tuple(zip(*losses, strict=True))
    apart = max(abs(x - y) for x, y in pairs)
    return StepsComparison(steps, pairs, apart, cosine, compare_logits(a, b, batches))


def _logits(model: nn.Module, batch: TokenBatch) -> Tensor:
    """Return the logits [N, V] of the positions that hold a document."""
    logits = forward(model, batch, frozenset({LOGITS})).logits
    assert logits is not None
    return logits[batch.document_ids >= 0].float()


def _gradients(model: nn.Module, batches: Sequence[TokenBatch]) -> tuple[dict[str, Tensor], float]:
    model.zero_grad(set_to_none=True)
    loss = sum(_backward(model, batch, len(batches)) for batch in batches)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found, loss


def _backward(model: nn.Module, batch: TokenBatch, share: int) -> float:
    """Back-propagate the mean next-token loss of a batch, divided by ``share``, and return it."""
    objective = NextToken()
    manager = ObjectiveManager({"next_token": Term(objective)})
    counts = {name: count * share for name, count in manager.counts(batch, manager.base_weights, False).items()}
    loss = manager.loss(model, batch, manager.base_weights, counts, None, Tally(), False)
    loss.backward()
    return float(loss.detach())


def _train(model: nn.Module, batches: Sequence[TokenBatch], steps: int, config: OptimizerConfig) -> list[float]:
    optimizer = build_optimizer(model, config)
    losses = []
    for step in range(steps):
        losses.append(_backward(model, batches[step % len(batches)], 1))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return losses


def _way(model: nn.Module, start: Mapping[str, Tensor], names: Any) -> Tensor:
    """Return how far the named parameters went, float64, one vector."""
    now = dict(model.named_parameters())
    return torch.cat([(now[name].detach() - start[name]).double().flatten() for name in sorted(names)])


def _implementation(name: str) -> Callable[[nn.Module], None]:
    return lambda model: model.set_attn_implementation(name)  # type: ignore[operator]


def _compile(model: nn.Module) -> None:
    # Without this option the compiler drops the rounding of group scales to float16, so that a few codes in a hundred
    # thousand come out differently.
    model.get_submodule("model").compile(options={"emulate_precision_casts": True})


def _int8(model: nn.Module) -> None:
    set_products(model, Products("int8"))


def _bfloat16(model: nn.Module) -> None:
    model.to(torch.bfloat16)


# Ways of computing one model; each changes a model in place.
MODES: dict[str, Callable[[nn.Module], None]] = {
    "plain": lambda model: None,
    "sdpa": _implementation("sdpa"),
    "eager": _implementation("eager"),
    "compile": _compile,
    "checkpointing": checkpoint_layers,
    "bfloat16": _bfloat16,
    "int8": _int8,
}


def set_mode(model: nn.Module, mode: str) -> None:
    """Make ``model`` compute in one of ``MODES``, and ready for gradients.

    Raises: InputError for an unknown mode, or a model that drops activations at random.
    """
    if mode not in MODES:
        raise unknown_name("mode", mode, MODES)
    drops = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    config: Any = model.config
    if drops or bool(getattr(config, "attention_dropout", False)):
        raise InputError("equivalence: the model has dropout, so that it is not even the same as itself")
    model.train()  # what training computes: some ways, such as checkpointing, are for training alone
    MODES[mode](model)


def to_json(value: LogitsComparison | GradientsComparison | StepsComparison) -> dict[str, Any]:
    """Return plain values for a JSON file."""
    return asdict(value)
