"""A GGUF file as a plain Hugging Face model: our checked reader, our dequantisation, its own tokenizer.

Files of architectures that we do not map go through transformers, after the container has been checked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights

from wrinklefree.artifact.gguf.architectures import ARCHITECTURES
from wrinklefree.artifact.gguf.container import read_gguf
from wrinklefree.artifact.gguf.read_floats import float_tensors
from wrinklefree.artifact.gguf.read_model import files_of, is_ternary_gguf, open_model
from wrinklefree.errors import FormatError, InputError
from wrinklefree.models.tokenizer_files import load_tokenizer


def is_mapped(path: str | Path) -> bool:
    """Return whether a GGUF file is of an architecture that we read ourselves. Raises: FormatError when damaged."""
    return read_gguf(path).architecture in ARCHITECTURES


def gguf_config(path: str | Path) -> Any:
    """Return the configuration of a GGUF file of ours, with every default that transformers adds.

    Raises: FormatError when the file is damaged.
    """
    return _config(open_model(path, keep_subln=False).config)


def load_gguf(path: str | Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model with plain weights in ``dtype``, and the tokenizer. A ternary file is read as numbers too.

    Raises: FormatError when the file is damaged, or has no tokenizer.
    """
    model = open_model(path, keep_subln=False)
    config = _config(model.config)
    with no_init_weights():
        built: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    targets = dict(built.named_parameters())
    with torch.no_grad():
        for name, values in float_tensors(model):
            target = targets.pop(name, None)
            if target is None or tuple(target.shape) != values.shape:
                raise FormatError(
                    f"{path}: {name} {list(values.shape)} has no place in transformers' {config.model_type}"
                )
            target.copy_(torch.from_numpy(values))
        left = targets.keys() - ({"lm_head.weight"} if config.tie_word_embeddings else set())
        for name in [name for name in left if name.endswith(".bias")]:  # a graph without one adds nothing
            targets[name].zero_()
            left.discard(name)
    if left:
        raise FormatError(f"{path}: transformers' {config.model_type} needs {min(left)}, which the file does not have")
    built.tie_weights()
    tokenizer, generation = load_tokenizer(files_of(model.file), str(path))
    if generation is not None:
        built.generation_config = generation
    return built.eval(), tokenizer


def refuse_ternary(source: str) -> None:
    """Raise InputError for a GGUF file that is ternary: converting it would choose other codes than it has."""
    if Path(source).is_file() and is_ternary_gguf(source):
        raise InputError(
            f"{source}: is ternary already, and converting would choose its codes anew; take them as they are: "
            f"wf import {source} CHECKPOINT --to checkpoint"
        )


def _config(settings: dict[str, Any]) -> Any:
    values = {key: value for key, value in settings.items() if key != "model_type"}
    return AutoConfig.for_model(settings["model_type"], **values)
