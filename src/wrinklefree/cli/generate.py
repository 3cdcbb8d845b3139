"""`wf generate`: continue a prompt; the text appears as it comes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wrinklefree.cli.decoding import (
    EntropyBound,
    Mode,
    SubBlock,
    Threshold,
    TokensPerForward,
    Trace,
    Window,
    check_trace,
    check_used,
    decoding_settings,
)
from wrinklefree.cli.output import STANDARD_OUTPUT, Output
from wrinklefree.errors import InputError

if TYPE_CHECKING:
    from wrinklefree.engine import Generation


def run(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="a packed model (wf export) or a ternary GGUF file")],
    prompt: Annotated[str | None, typer.Option(help="the text to continue; without it, standard input")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="ask the prompt as a user message in the model's template")
    ] = False,
    max_tokens: Annotated[int, typer.Option(help="most tokens to generate")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token")] = 0.7,
    top_p: Annotated[float, typer.Option(help="smallest set of tokens with this share of probability")] = 0.9,
    top_k: Annotated[int, typer.Option(help="most probable tokens to choose from; 0 is all")] = 0,
    min_p: Annotated[float, typer.Option(help="least probability, relative to the most probable token's")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="the same seed gives the same text")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="end before this text; may be given again")] = None,
    mode: Mode = "auto",
    threshold: Threshold = None,
    tokens_per_forward: TokensPerForward = None,
    entropy_bound: EntropyBound = None,
    sub_block: SubBlock = None,
    window: Window = None,
    trace: Trace = None,
    threads: Annotated[int | None, typer.Option(min=1, help="threads; default: physical cores")] = None,
    context: Annotated[
        int | None, typer.Option("--ctx", min=1, help="positions; default: the model's, at most 4096")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="write text and figures as JSON (- is standard output)")] = None,
) -> None:
    """The text goes to standard output as it comes; --json adds tokens, speed and forward passes."""
    output = Output(json)
    check_trace(trace)
    decoding = decoding_settings(mode, threshold, tokens_per_forward, entropy_bound, sub_block, window)
    from wrinklefree.engine import Engine, SamplingParams
    from wrinklefree.engine.trace import TraceRecorder

    text = read_prompt(prompt)
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        stop=tuple(stop or ()),
    )
    engine = Engine.load(model, threads=threads, context=context)
    tokenizer = engine.tokenizer
    ids = tokenizer.encode_chat([{"role": "user", "content": text}]) if chat else tokenizer.encode(text)
    recorder = None if trace is None else TraceRecorder(engine, ids, sub_block)
    answer = engine.generate(ids, params, decoding, recorder)
    check_used(answer, threshold, tokens_per_forward, entropy_bound, sub_block, window)
    try:
        for step in answer:
            if json != STANDARD_OUTPUT:
                sys.stdout.write(step.text)
                sys.stdout.flush()
    finally:
        if trace is not None and recorder is not None and answer.tokens:
            recorder.write(trace, answer)
    if json != STANDARD_OUTPUT:
        sys.stdout.write("\n")
    output.finish(figures(answer))


def read_prompt(prompt: str | None) -> str:
    """Return the prompt, from standard input when None.

    Raises: InputError when it is empty or not UTF-8.
    """
    if prompt is None:
        try:
            prompt = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"prompt: standard input is not UTF-8 at byte {error.start}") from error
    if "\udc80" <= max(prompt, default="") <= "\udcff":
        # The operating system hands over bytes of an argument that are no UTF-8 as lone surrogates.
        raise InputError("--prompt: the text is not UTF-8")
    if not prompt:
        raise InputError("prompt: found nothing; give --prompt TEXT or a text on standard input")
    return prompt


def figures(answer: Generation) -> dict[str, Any]:
    """Return the JSON of a finished generation."""
    found = {
        "text": answer.text,
        "tokens": answer.tokens,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": len(answer.tokens),
        "finish_reason": answer.finish_reason,
        "mode": answer.mode,
        "forwards": answer.forwards,
        "tokens_per_forward": answer.tokens_per_forward,
        "tok_s": answer.tokens_per_second,
        "time_to_first_token_s": answer.first_token_seconds,
        "seed": answer.seed,
    }
    if answer.proposed is not None and answer.accepted is not None:
        found |= {"proposed": answer.proposed, "accepted": answer.accepted}
    return found
