"""Prose every Python carries: the topics of ``help()`` and the docstrings of the standard library.

The docstrings are read from the sources with `ast`; nothing is imported or run, so a module with side effects (or
one for another platform) is as good as any. The texts differ a little between Python versions; names do not.
"""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from wrinklefree.data.document import Document
from wrinklefree.errors import InputError

TOPIC_PREFIX = "pydoc:"
MODULE_PREFIX = "stdlib:"

# The held-out topics, about 10 % of the topics' text (44,500 of 465,000 characters in Python 3.11). Drawn once, by
# the hash of the name, and written out so that every Python version and every run holds out the same ones.
HELD_OUT_TOPICS = tuple(
    f"{TOPIC_PREFIX}{name}"
    for name in (
        "dict",
        "floating",
        "id-classes",
        "raise",
        "return",
        "sequence-types",
        "slicings",
        "specialattrs",
        "string-methods",
        "typesmodules",
    )
)

# Not documentation: tests, installed packages, vendored wheels, and the topics themselves as a Python literal.
_SKIPPED_DIRECTORIES = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "_bundled", "pydoc_data"}
)
_SHORTEST_MODULE_CHARACTERS = 200


def topics() -> list[Document]:
    """Return the topics of ``help()``, sorted by name, ids ``pydoc:<topic>``.

    Raises: InputError when this Python was installed without them.
    """
    try:
        from pydoc_data.topics import topics as texts
    except ImportError as error:
        raise InputError(
            "python-docs: this Python has no pydoc_data package; install the full standard library, or give a text "
            "of your own with kind=text path=FILE"
        ) from error
    return [Document(f"{TOPIC_PREFIX}{name}", texts[name].strip() + "\n") for name in sorted(texts)]


def docstrings(root: Path | None = None) -> list[Document]:
    """Return one document per standard library module that has docstrings, sorted, ids ``stdlib:<module>``.

    ``root``: the directory to read instead of this Python's standard library. A module that does not parse (the
    library carries a few on purpose) is left out.
    """
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    return list(_module_documents(root))


def python_docs(with_docstrings: bool = True) -> list[Document]:
    """Return the topics, then the docstrings when asked for."""
    return topics() + (docstrings() if with_docstrings else [])


def _module_documents(root: Path) -> Iterator[Document]:
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if any(part in _SKIPPED_DIRECTORIES for part in parts) or parts[0].startswith("config-"):
            continue
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = _module_text(name, path)
        if len(text) >= _SHORTEST_MODULE_CHARACTERS:
            yield Document(f"{MODULE_PREFIX}{name}", text)


def _module_text(name: str, path: Path) -> str:
    try:
        with warnings.catch_warnings():
            # Invalid escape sequences in somebody else's source are not this program's business.
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return ""
    sections = list(_sections(name, tree))
    return "\n\n".join(sections) + "\n" if sections else ""


def _sections(name: str, node: ast.Module | ast.ClassDef) -> Iterator[str]:
    """Yield "signature, then docstring" for a module or class and what stands in its body, in source order."""
    own = ast.get_docstring(node)
    if own:
        yield f"{name}\n\n{own.strip()}"
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from _sections(f"class {child.name}", child)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(child)
            if text:
                yield f"{child.name}({ast.unparse(child.args)})\n\n{text.strip()}"
