"""Drives llama-cpp-python in the line protocol of docs/interchange.md.

It imports nothing of wrinklefree, because it may run in another Python. Usage: MODEL.gguf CONTEXT THREADS
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any


def main(model_path: str, context: str, threads: str) -> None:
    """Load the model, then answer each line of standard input."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the library prints must not stand among the answers
    import llama_cpp

    count = int(threads)
    model = llama_cpp.Llama(
        model_path,
        n_ctx=int(context),
        n_batch=int(context),
        n_threads=count,
        n_threads_batch=count,
        n_gpu_layers=0,
        logits_all=True,
        verbose=True,
    )
    print(f"\n@wf ready {version('llama-cpp-python')}", file=out, flush=True)
    for line in sys.stdin:
        print(f"\n@wf {_answer(model, *line.split())}", file=out, flush=True)


def _answer(model: Any, request: str, *words: str) -> str:
    if request == "tokenize":
        text = bytes.fromhex(words[0] if words else "")
        return " ".join(["tokens", *(str(token) for token in model.tokenize(text, add_bos=True, special=True))])
    if request == "logits":
        first, tokens = int(words[1]), [int(word) for word in words[2:]]
        model.reset()
        model.eval(tokens)
        model.scores[first : len(tokens)].astype("<f4").tofile(words[0])
        return f"logits {len(tokens) - first} {model.n_vocab()}"
    if request == "greedy":
        return " ".join(["tokens", *(str(token) for token in _greedy(model, int(words[0]), words[1:]))])
    return f"error unknown request {request}"


def _greedy(model: Any, count: int, words: Sequence[str]) -> list[int]:
    model.reset()
    model.eval([int(word) for word in words])
    given: list[int] = []
    while True:
        given.append(int(model.scores[model.n_tokens - 1].argmax()))
        if len(given) >= count:
            return given
        model.eval(given[-1:])


if __name__ == "__main__":
    main(*sys.argv[1:])
