"""What holds for everyone: keyboard, names for screen readers, contrast, narrow screens, light and dark."""

from __future__ import annotations

from typing import Any

import pytest
from looking import Opened, until
from running_server import RunningServer

# Contrast of two computed colours as WCAG 2.2 defines it.
CONTRAST = """
(pairs) => {
  const pen = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const light = (name) => {
    pen.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    pen.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => {
      v /= 255;
      return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  return pairs.map(([a, b]) => {
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  });
}
"""
PAIRS = [
    ("--ink", "--paper"), ("--muted", "--paper"), ("--muted", "--surface"), ("--muted", "--sunken"),
    ("--on-accent", "--accent"), ("--ar", "--surface"), ("--block", "--surface"), ("--speculative", "--surface"),
]  # fmt: skip


def ready(opened: Opened, server: RunningServer) -> Any:
    opened.page.goto(f"{server.url}/")
    opened.page.wait_for_selector("#model[data-state=ready]")
    return opened.page


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_contrast(opened: Opened, server: RunningServer, theme: str) -> None:
    opened.page.emulate_media(color_scheme=theme)
    page = ready(opened, server)
    found = dict(zip(PAIRS, page.evaluate(CONTRAST, PAIRS), strict=True))
    assert {pair: round(value, 2) for pair, value in found.items() if value < 4.5} == {}


def test_the_theme_follows_the_system_until_the_button_is_pressed(opened: Opened, server: RunningServer) -> None:
    page = opened.page
    page.emulate_media(color_scheme="light")
    ready(opened, server)
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(colour)
    assert light != dark
    page.click("#theme")
    assert page.evaluate(colour) == light
    page.reload()
    assert page.evaluate(colour) == light


def test_every_control_has_a_name(opened: Opened, server: RunningServer) -> None:
    page = ready(opened, server)
    nameless = page.evaluate("""() => [...document.querySelectorAll('button, input, select, textarea, a')]
        .filter((one) => !(one.textContent.trim() || one.getAttribute('aria-label') || one.labels?.length))
        .map((one) => one.outerHTML)""")
    assert nameless == []
    assert page.evaluate("document.documentElement.lang") == "en"


def test_views_by_keyboard(opened: Opened, server: RunningServer) -> None:
    page = ready(opened, server)
    page.focus("#tab-chat")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-compare"
    assert page.is_visible("#view-compare") and not page.is_visible("#view-chat")
    page.keyboard.press("ArrowRight")
    assert page.is_visible("#view-chat")
    page.reload()
    page.keyboard.press("Tab")  # the prompt has the focus at first: one can type at once
    page.focus("body")


@pytest.mark.parametrize("width", [360, 720, 1000])
def test_narrow_screens_do_not_scroll_sideways(opened: Opened, server: RunningServer, width: int) -> None:
    page = opened.page
    page.set_viewport_size({"width": width, "height": 700})
    ready(opened, server)
    for view in ("chat", "compare"):
        page.click(f"#tab-{view}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        beyond = page.evaluate(
            """(width) => [...document.querySelectorAll('main *, header *')].filter((one) =>
            one.checkVisibility() && !one.closest('.weave, .hidden') && one.getBoundingClientRect().right > width + 1)
            .map((one) => one.outerHTML.slice(0, 80))""",
            width,
        )
        assert beyond == []
    if width < 980:
        assert not page.is_visible("#settings")
    page.click("#open-settings")
    until(page, "width => document.getElementById('settings').checkVisibility() === (width < 980)", width)


def test_settings_are_checked_and_remembered(opened: Opened, server: RunningServer) -> None:
    page = ready(opened, server)
    page.fill("#set-temperature", "0.35")
    page.fill("#set-max_tokens", "0")  # not allowed: nothing is sent
    page.fill("#prompt", "Hello")
    page.press("#prompt", "Enter")
    assert page.locator(".message").count() == 0
    assert page.evaluate("document.querySelector('#set-max_tokens').matches(':invalid')")
    page.reload()
    page.wait_for_selector("#model[data-state=ready]")
    assert page.input_value("#set-temperature") == "0.35"
    assert page.input_value("#set-max_tokens") == "256"
    page.get_by_role("button", name="Reset to defaults").click()
    assert page.input_value("#set-temperature") == "0.7"
