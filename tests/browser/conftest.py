"""A real Chromium on a real server. Without Playwright or a Chromium all of this is skipped, and says so."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(_TESTS / room) for room in ("artifact", "engine", "export", "server")]

from looking import Opened  # noqa: E402
from running_server import RunningServer, chat_toy  # noqa: E402

MASK = 258


def diffusion_toy(directory: Path) -> Path:
    """Write a toy that decodes one by one, by blocks of 8, and speculatively, and that talks in bytes."""
    chat_toy(directory, vocab_size=MASK + 1, max_position_embeddings=1024)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["wrinklefree"]["dlm"] = {
        "mask_token_id": MASK, "block_size": 8, "token_shift": True, "variant": "causal", "clean_half": "causal",
    }  # fmt: skip
    path.write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return diffusion_toy(tmp_path_factory.mktemp("browser") / "toy")


@pytest.fixture(scope="module")
def server(toy: Path) -> Iterator[RunningServer]:
    with RunningServer(toy, context=1024) as running:
        yield running


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    api = pytest.importorskip(
        "playwright.sync_api", reason="the pages were not looked at in a browser: Playwright is missing (make browser)"
    )
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("the pages were not looked at in a browser: no chromium here (or set CHROMIUM to one)")
    with api.sync_playwright() as playwright:
        # Root, as in containers, has no sandbox of its own to start.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium: Any) -> Iterator[Opened]:
    """A fresh profile, in which no error may show and nothing but the one server may be asked."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    found = Opened(context.new_page())
    page = found.page
    page.set_default_timeout(20_000)
    page.on("console", lambda message: found.complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: found.complaints.append(str(error)))
    page.on("request", lambda request: found.urls.append(request.url))
    yield found
    origins = {"/".join(url.split("/")[:3]) for url in found.urls if not url.startswith("data:")}
    context.close()
    assert not found.complaints
    assert len(origins) <= 1, f"the page asked others: {origins}"
