"""A model's name -> what measures it: the engine for packed models and ternary files, a server, torch for the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wrinklefree.artifact.manifest import model_format, read_config
from wrinklefree.engine.held import runs
from wrinklefree.errors import MissingDependencyError
from wrinklefree.eval.scorer import Scorer


@contextmanager
def open_scorer(source: str, threads: int | None = None, say: Callable[[str], None] = print) -> Iterator[Scorer]:
    """Give a model of any kind, ternary ones at full quantisation strength while the block runs.

    ``source``: a packed model, a checkpoint, a Hugging Face id or directory, a GGUF file, or the address of a server,
    `http://HOST:PORT[/v1][#MODEL]`; its own threads serve then. ``say`` hears of a server's failed attempts.

    Raises: InputError when nothing is there or it cannot be read, MissingDependencyError when it needs torch.
    """
    if source.startswith(("http://", "https://")):
        from wrinklefree.eval.server_scorer import ServerScorer

        yield ServerScorer(source, say)
        return
    if runs(source):
        from wrinklefree.engine import Engine
        from wrinklefree.eval.engine_scorer import SLOTS, EngineScorer

        yield EngineScorer(source, Engine.load(source, threads=threads, slots=SLOTS))
        return
    model, tokenizer, dlm = load_torch(source, threads)
    from wrinklefree.eval.torch_scorer import TorchScorer
    from wrinklefree.models.pooling import refuse_classifier
    from wrinklefree.quant.bitlinear import full_strength

    refuse_classifier(model, source, "measure it with --labelled FILE.jsonl")
    with full_strength(model):
        yield TorchScorer(source, model, tokenizer, dlm)


def load_torch(source: str, threads: int | None = None) -> tuple[Any, Any, dict[str, Any] | None]:
    """Return a checkpoint's or Hugging Face model in evaluation mode, its tokenizer, and a diffusion model's marker.

    Raises: InputError when nothing is there or it cannot be read, MissingDependencyError without torch.
    """
    try:
        import torch

        from wrinklefree.models.io import load_checkpoint, load_source
    except ImportError as error:
        raise MissingDependencyError(
            f"{source}: evaluating a model that is not packed needs torch: pip install 'wrinklefree[eval]'"
        ) from error
    if threads is not None:
        torch.set_num_threads(threads)
    if Path(source).is_dir() and model_format(read_config(source)) == "checkpoint":
        model, tokenizer, info = load_checkpoint(source)
        return model.eval(), tokenizer, info.dlm
    model, tokenizer = load_source(source)
    return model.eval(), tokenizer, None
