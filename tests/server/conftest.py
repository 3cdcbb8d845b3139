"""The toys of other rooms are used here too; servers on a port of their own."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parents[1] / room) for room in ("artifact", "engine", "export")]

from running_server import RunningServer, chat_toy  # noqa: E402


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed toy with a tokenizer of bytes and a chat template: any text comes in, random text comes out."""
    return chat_toy(tmp_path_factory.mktemp("server") / "toy")


@pytest.fixture(scope="module")
def server(toy: Path) -> Iterator[RunningServer]:
    """A server of the toy over a real socket."""
    with RunningServer(toy) as running:
        yield running
