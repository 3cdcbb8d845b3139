"""A long text is turned into tokens without holding up the other threads: a server answers meanwhile."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import tokenizer_toys

from wrinklefree.artifact.tokenizer import Tokenizer


def test_other_threads_run_while_a_long_text_is_encoded(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(tokenizer_toys.write(tmp_path))
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.extend(tokenizer.encode("a word " * 60_000)))
    turns = 0
    thread.start()
    while thread.is_alive():
        time.sleep(0.001)
        turns += 1
    assert len(found) >= 420_000
    assert turns > 20
