"""Sequence classification on a decoder: a head on the state of the last real token.

The model is the family's own ``...ForSequenceClassification`` of transformers, its backbone converted like any other,
its head (``score``) in full precision. Pooling is ours: it goes by the mask, so that padding may be on either side and
may have any token, or none, of its own.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, BitNetConfig, BitNetPreTrainedModel, PreTrainedModel
from transformers.modeling_layers import GenericForSequenceClassification

from wrinklefree.errors import InputError, unknown_name
from wrinklefree.models.families import family_of
from wrinklefree.models.pooling import has_class_head, pooled

# Our word for what is to be predicted -> the one in config.json.
PROBLEMS = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


class BitNetForSequenceClassification(GenericForSequenceClassification, BitNetPreTrainedModel):
    """transformers has none for BitNet; this one is known to AutoModel once this module is imported."""


AutoModelForSequenceClassification.register(BitNetConfig, BitNetForSequenceClassification, exist_ok=True)


def is_classifier(config: Any) -> bool:
    """Return whether a config.json is that of a sequence classifier."""
    names = getattr(config, "architectures", None) or ()
    return any(str(name).endswith("ForSequenceClassification") for name in names)


def as_classifier(
    model: PreTrainedModel, labels: tuple[str, ...], problem: str = "single_label", pad_id: int | None = None
) -> PreTrainedModel:
    """Return a classifier on the backbone of ``model`` (shared, ternary or not) with a new head for ``labels``.

    The head ``[labels, D]`` is drawn from torch's generator with the model's initial range. A classifier for the
    same labels is returned as it is.

    Raises: InputError for an unknown problem or family, or a classifier for other labels.
    """
    if problem not in PROBLEMS:
        raise unknown_name("task.problem", problem, PROBLEMS)
    family_of(model.config)
    if has_class_head(model):
        check_labels(model, labels, "the model")
        return model
    config: Any = type(model.config).from_dict(model.config.to_dict())
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: number for number, name in enumerate(labels)}
    config.problem_type = PROBLEMS[problem]
    config.pad_token_id = pad_id
    config._attn_implementation = model.config._attn_implementation
    with torch.device("meta"):
        classifier: Any = AutoModelForSequenceClassification.from_config(config)
    body: Any = model.get_submodule("model")
    body.config = config
    for module in body.modules():
        if hasattr(module, "config"):
            module.config = config
    classifier.model = body
    embedding = body.get_input_embeddings().weight
    score = nn.Linear(config.hidden_size, len(labels), bias=False, device=embedding.device, dtype=embedding.dtype)
    nn.init.normal_(score.weight, std=float(getattr(config, "initializer_range", 0.02)))
    classifier.score = score
    return cast(PreTrainedModel, classifier.eval())


def class_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of a classifier's classes, by number."""
    names: dict[int, str] = model.config.id2label  # type: ignore[union-attr, assignment]
    return tuple(names[number] for number in sorted(names))


def check_labels(model: nn.Module, labels: tuple[str, ...], what: str) -> None:
    """Raise InputError, naming ``what``, when ``model`` is no classifier or one for other labels."""
    if not has_class_head(model):
        raise InputError(
            f"{what} is no classifier; fine-tune it on the task first (training=teacher_finetune) and give its output"
        )
    if class_names(model) != labels:
        raise InputError(f"{what} is a classifier for {list(class_names(model))}, the examples have {list(labels)}")


def classify(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Return logits [B, C] of a classifier for ``input_ids`` [B, T], padded on either side; the mask is 1 on tokens.

    Positions count real tokens, so padding changes nothing.
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    states = model.get_submodule("model")(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
        use_cache=False,
    ).last_hidden_state
    logits: Tensor = model.get_submodule("score")(pooled(states, mask.bool()))
    return logits
