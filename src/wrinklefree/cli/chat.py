"""`wf chat`: a conversation in the terminal with the model's own template."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wrinklefree.cli.decoding import (
    EntropyBound,
    Mode,
    SubBlock,
    Threshold,
    TokensPerForward,
    Window,
    check_used,
    decoding_settings,
)
from wrinklefree.errors import InputError

if TYPE_CHECKING:
    from wrinklefree.engine import DecodingSettings, Engine, SamplingParams

HELP = "/reset forgets the conversation, /exit (or Ctrl-D) leaves, Ctrl-C stops an answer"


def run(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="a packed model (wf export) or a ternary GGUF file")],
    system: Annotated[str | None, typer.Option(help="a system message")] = None,
    max_tokens: Annotated[int, typer.Option(help="most tokens of an answer")] = 512,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token")] = 0.7,
    top_p: Annotated[float, typer.Option(help="smallest set of tokens with this share of probability")] = 0.9,
    seed: Annotated[int | None, typer.Option(help="the same seed gives the same answers")] = None,
    mode: Mode = "auto",
    threshold: Threshold = None,
    tokens_per_forward: TokensPerForward = None,
    entropy_bound: EntropyBound = None,
    sub_block: SubBlock = None,
    window: Window = None,
    threads: Annotated[int | None, typer.Option(min=1, help="threads; default: physical cores")] = None,
    context: Annotated[
        int | None, typer.Option("--ctx", min=1, help="positions; default: the model's, at most 4096")
    ] = None,
) -> None:
    """Reads lines, answers each; the oldest turns are forgotten when the context is full."""
    from wrinklefree.engine import Engine, SamplingParams

    decoding = decoding_settings(mode, threshold, tokens_per_forward, entropy_bound, sub_block, window)
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    engine = Engine.load(model, threads=threads, context=context)
    opening = [{"role": "system", "content": system}] if system else []
    hello = engine.tokenizer.encode_chat([*opening, {"role": "user", "content": "Hello"}])  # a model without template
    with engine.generate(hello, params, decoding) as trial:  # or a mode it was not trained for is refused at once
        check_used(trial, threshold, tokens_per_forward, entropy_bound, sub_block, window)
    print(f"{model}: {engine.kernels_name}, {engine.threads} threads. {HELP}", file=sys.stderr)
    turns: list[dict[str, str]] = []
    while (question := _ask()) is not None:
        if question == "/exit":
            return
        if question == "/reset":
            turns.clear()
        elif question:
            turns.append({"role": "user", "content": question})
            answer = _answer(engine, opening, turns, params, decoding)
            turns.append({"role": "assistant", "content": answer})


def _ask() -> str | None:
    """Return the next line, or None at the end of the input."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 at byte {error.start}") from error


def _answer(
    engine: Engine,
    opening: list[dict[str, str]],
    turns: list[dict[str, str]],
    params: SamplingParams,
    decoding: DecodingSettings,
) -> str:
    """Print an answer as it comes and return it; ``turns`` loses its oldest pairs where they do not fit."""
    while True:
        ids = engine.tokenizer.encode_chat([*opening, *turns])
        if len(ids) + min(params.max_tokens, engine.context // 4) <= engine.context:
            break
        if len(turns) < 3:
            raise InputError(f"the message has {len(ids)} tokens, too long for the context of {engine.context}")
        del turns[:2]
    answer = engine.generate(ids, params, decoding)
    try:
        for step in answer:
            print(step.text, end="", flush=True)
    except KeyboardInterrupt:
        answer.close()
    print()
    return answer.text
