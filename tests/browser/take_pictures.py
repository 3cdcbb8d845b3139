"""Pictures of the pages for the documentation, of running servers: `wf serve` of a diffusion model, `wf board` of runs.

    python tests/browser/take_pictures.py --page http://127.0.0.1:8000 --board http://127.0.0.1:8001 --out docs/images

Needs Playwright, a chromium, and Pillow to make the files small. Speeds are in the pictures: the machine must be quiet.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright

PROMPT = "Why is the sky blue?"
SETTINGS = {"temperature": 0, "threshold": 0.35, "repetition_penalty": 1.1, "max_tokens": 48}


def main() -> None:
    """Take them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--page", help="address of a wf serve")
    parser.add_argument("--board", help="address of a wf board")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        path = os.environ.get("CHROMIUM") or shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [])

        def opened(address: str, theme: Any, width: int, height: int) -> Page:
            context = browser.new_context(
                color_scheme=theme, viewport={"width": width, "height": height}, device_scale_factor=1.5
            )
            page = context.new_page()
            page.goto(address)
            return page

        if given.page:
            save(denoising(opened(given.page, "dark", 1180, 600)), given.out / "page-denoising.png")
            save(comparison(opened(given.page, "light", 1320, 800)), given.out / "page-compare.png")
        if given.board:
            page = opened(given.board, "light", 1320, 900)
            page.wait_for_selector(".chart path.line")
            save(page, given.out / "board.png")
        browser.close()


def start(page: Page, **settings: Any) -> None:
    script = "found => localStorage.setItem('wrinklefree.settings', JSON.stringify(found))"
    page.evaluate(script, {**SETTINGS, **settings})
    page.reload()
    page.wait_for_selector("#model[data-state=ready]")


def denoising(page: Page) -> Page:
    """An answer by blocks, in the middle: the first pass of the second half that leaves positions open."""
    start(page, mode="block", max_tokens=70)
    page.fill("#prompt", PROMPT)
    page.press("#prompt", "Enter")
    page.wait_for_selector(".answer .actions:not([hidden])")
    slider = page.locator(".track input")
    for at in range(int(slider.get_attribute("max") or 0) * 2 // 3, 0, -1):
        slider.evaluate("(one, at) => { one.value = at; one.dispatchEvent(new Event('input')); }", at)
        if page.locator(".cell.waiting:not([hidden])").count() > 2:
            break
    return page


def comparison(page: Page) -> Page:
    start(page)
    page.click("#open-settings")
    page.click("#tab-compare")
    page.fill("#compare-prompt", PROMPT)
    page.press("#compare-prompt", "Enter")
    page.wait_for_selector(".lane .against .length", timeout=120_000)
    print(json.dumps(page.locator(".lane .big").all_text_contents()))
    return page


def save(page: Page, path: Path) -> None:
    page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(900)  # until what moves has come to rest
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
