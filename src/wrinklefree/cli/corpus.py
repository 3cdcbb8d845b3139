"""`wf corpus`: a model writes texts, by itself or from prompts, to distil it from."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wrinklefree.cli.output import Output, progress
from wrinklefree.errors import InputError

if TYPE_CHECKING:
    from wrinklefree.artifact.tokenizer import Tokenizer
    from wrinklefree.teachers.corpus import CorpusReport, CorpusSettings, Writer

# Random first tokens that are drawn when there are no prompts; documents take them in turn.
_STARTS = 4096


def run(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="a model (on torch) or a packed or GGUF one (on the engine)"),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="the file to write; must not exist")],
    tokens: Annotated[int, typer.Option(min=1, help="tokens to sample, at least")] = 100_000,
    prompts: Annotated[
        Path | None, typer.Option(help="one prompt a line, or .jsonl with a text each; without it, random first tokens")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="ask each prompt in the model's chat template")] = False,
    max_tokens: Annotated[int, typer.Option(min=1, help="most tokens of one answer")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the most probable token")] = 1.0,
    top_p: Annotated[float, typer.Option(help="smallest set of tokens with this share of probability")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="the same seed gives the same corpus")] = 0,
    together: Annotated[int, typer.Option(min=1, help="documents of one group, kept together")] = 8,
    rows: Annotated[
        int | None,
        typer.Option(min=1, help="documents sampled at once (torch), if not a whole group; as they end, more"),
    ] = None,
    dtype: Annotated[str, typer.Option(help="of a model on torch: float32 or bfloat16")] = "float32",
    json: Annotated[Path | None, typer.Option(help="write the report as JSON (- is standard output)")] = None,
) -> None:
    """The same command goes on after an interruption. wf train data=OUT.jsonl and wf convert --calibration read it."""
    output = Output(json)
    if out.suffix != ".jsonl":
        raise InputError(f"{out}: the name must end with .jsonl, which is how wf train and wf convert know it")
    if chat and prompts is None:
        raise InputError("--chat: needs --prompts")
    with progress("corpus") as show:
        options = {"tokens": tokens, "max_tokens": max_tokens, "temperature": temperature, "top_p": top_p,
                   "seed": seed, "together": together, "chat": chat, "rows": rows}  # fmt: skip
        report = make(model, out, prompts, dtype, options, show)
    output.line(f"{report.documents} documents, {report.tokens:,} sampled tokens: {report.out}")
    output.finish({**asdict(report), "out": str(report.out)})


def make(
    model: str, out: Path, prompts: Path | None, dtype: str, options: dict[str, Any], show: Callable[[float, str], None]
) -> CorpusReport:
    """Load ``model`` and write the corpus.

    Raises: InputError when the model, the prompts or the options cannot be used.
    """
    from wrinklefree.teachers.corpus import CorpusSettings, prompts_hash, write_corpus

    tokenizer, sampler = _open(model, dtype)
    texts = None if prompts is None else _read_prompts(prompts)
    ids = _starts(tokenizer, options["seed"]) if texts is None else _encoded(tokenizer, texts, options["chat"])
    name = f"{model} {dtype}"
    settings = CorpusSettings(model=name, prompts=None if texts is None else prompts_hash(ids), **options)

    # Of prompts that write special tokens out, the texts do, too.
    special = settings.chat or (prompts is not None and prompts.suffix == ".jsonl")

    def to_text(tokens: list[int]) -> str:
        ends = tokenizer.eos_ids
        if tokenizer.adds_bos and tokens[:1] == [tokenizer.bos_id]:
            tokens = tokens[1:]  # reading the text puts it there again
        tokens = tokens[:-1] if tokens and tokens[-1] in ends else tokens
        return tokenizer.decode(tokens, skip_special=not special)

    return write_corpus(out, settings, ids, sampler, to_text, show)


def _open(model: str, dtype: str) -> tuple[Tokenizer, Writer]:
    from wrinklefree.engine.held import runs

    if runs(model):
        return _open_packed(Path(model))
    return _open_torch(model, dtype)


def _open_packed(model: Path) -> tuple[Tokenizer, Writer]:
    from wrinklefree.engine import Engine, SamplingParams

    engine = Engine.load(model)

    def sample(prompts: list[list[int]], seeds: list[int], settings: CorpusSettings) -> list[list[int]]:
        most, temperature, top_p = settings.max_tokens, settings.temperature, settings.top_p
        answers = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            params = SamplingParams(max_tokens=most, temperature=temperature, top_p=top_p, seed=seed)
            answers.append(list(engine.generate(prompt, params).run().tokens))
        return answers

    return engine.tokenizer, sample


def _open_torch(model: str, dtype: str) -> tuple[Tokenizer, Writer]:
    import tempfile

    import torch
    from torch import nn

    from wrinklefree.artifact.tokenizer import Tokenizer
    from wrinklefree.errors import unknown_name
    from wrinklefree.models.io import load_checkpoint, load_source
    from wrinklefree.models.sampling import sample
    from wrinklefree.quant.bitlinear import full_strength
    from wrinklefree.train.student import is_converted

    if dtype not in ("float32", "bfloat16"):
        raise unknown_name("--dtype", dtype, ("float32", "bfloat16"))
    kind = getattr(torch, dtype)
    loaded, theirs = load_checkpoint(model, kind)[:2] if is_converted(model) else load_source(model, kind)
    network: nn.Module = loaded
    network.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    with tempfile.TemporaryDirectory() as directory:
        theirs.save_pretrained(directory)
        tokenizer = Tokenizer.load(directory)
        _ = tokenizer.chat_template  # read while the directory is there

    def write(prompts: list[list[int]], seeds: list[int], settings: CorpusSettings) -> list[list[int]]:
        most, ends = settings.max_tokens, tokenizer.eos_ids
        with full_strength(network):
            return sample(network, prompts, seeds, most, settings.temperature, settings.top_p, ends, settings.rows)

    return tokenizer, write


def _read_prompts(path: Path) -> list[str]:
    from wrinklefree.data.document import SourceConfig
    from wrinklefree.data.sources import read_documents, read_text

    if path.suffix == ".jsonl":
        return [document.text for document in read_documents(SourceConfig(kind="jsonl", path=str(path)))]
    lines = [line for line in read_text(path).split("\n") if line.strip()]
    if not lines:
        raise InputError(f"{path}: holds no prompt; write one a line")
    return lines


def _encoded(tokenizer: Tokenizer, texts: Sequence[str], chat: bool) -> list[list[int]]:
    if not chat:
        return [tokenizer.encode(text) for text in texts]
    return [tokenizer.encode_chat([{"role": "user", "content": text}]) for text in texts]


def _starts(tokenizer: Tokenizer, seed: int) -> list[list[int]]:
    """Random first tokens, never special ones, behind BOS where the model has one."""
    draw = random.Random(seed)
    first = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
    starts: list[list[int]] = []
    while len(starts) < _STARTS:
        token = draw.randrange(tokenizer.vocab_size)
        if tokenizer.decode([token]).strip("\ufffd"):  # special tokens, and pieces of letters, have no text alone
            starts.append([*first, token])
    return starts
