"""A trace as an animated picture in one SVG file: style sheets move it, no script and no library.

What does not move pictures, and readers who asked for no motion, see the finished text.
"""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

from wrinklefree.eval.trace import Trace
from wrinklefree.eval.trace_layout import COLUMNS, Cell, Layout, colour, lay_out

_FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
_CHARACTER, _LINE, _MARGIN, _HEAD, _FOOT = 8.45, 26, 16, 44, 34
_HOLD_SECONDS = 3.0


def svg(trace: Trace, seconds: float = 0.35) -> str:
    """Return the SVG document of a trace, ``seconds`` for each pass and a rest at the end."""
    layout = lay_out(trace)
    times = _Times(layout.frames, seconds)
    width = round(2 * _MARGIN + (COLUMNS + 1) * _CHARACTER)
    height = _HEAD + layout.lines * _LINE + _FOOT
    body = [_captions(layout, times), *(_cell(cell, times, layout.blocks) for cell in layout.cells)]
    body.append(_legend(height, layout.blocks))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" aria-label={quoteattr(layout.title)}>',
            f"<title>{escape(layout.title)}</title>",
            f"<style>{_STYLE}{times.rules()}</style>",
            f'<rect width="{width}" height="{height}" fill="#fff"/>',
            f'<text x="{_MARGIN}" y="26" class="h">{escape(layout.title)}</text>',
            *body,
            "</svg>\n",
        ]
    )


_STYLE = (
    f"text{{font:14px {_FONT};white-space:pre;fill:#111}}.h{{font-weight:bold}}.p{{fill:#666}}.s{{font-size:12px}}"
    ".m{fill:#d5d5d5}.g{fill:#777;font-style:italic}.c{stroke:#222;stroke-width:1.6}"
    "@media (prefers-reduced-motion:reduce){*{animation:none!important}}"
)


class _Times:
    """The classes of what shows from one frame on until another, and their rules."""

    def __init__(self, frames: int, seconds: float) -> None:
        self._seconds = seconds
        self._frames = frames
        self._total = frames * seconds + _HOLD_SECONDS
        self._used: dict[tuple[int, int], str] = {}

    def shown(self, first: int, until: int | None = None) -> str:
        """Return the class of what shows in frames ``first`` to ``until`` (not included; None: to the end)."""
        span = (first, self._frames if until is None else until)
        return self._used.setdefault(span, f"t{len(self._used)}")

    def rules(self) -> str:
        found = []
        for (first, until), name in self._used.items():
            # What stays to the end shows where nothing moves; what goes away does not.
            last = until >= self._frames
            steps = [(0.0, 0), (self._share(first), 1), *([] if last else [(self._share(until), 0)])]
            steps = steps[1:] if first == 0 else steps
            frames = "".join(f"{share:.4f}%{{opacity:{value}}}" for share, value in steps)
            rest = "" if last else "opacity:0;"
            found.append(
                f"@keyframes {name}{{{frames}}}.{name}{{{rest}animation:{name} {self._total:g}s step-end infinite}}"
            )
        return "".join(found)

    def _share(self, frame: int) -> float:
        return 100 * frame * self._seconds / self._total


def _captions(layout: Layout, times: _Times) -> str:
    x = _MARGIN + COLUMNS * _CHARACTER
    last = len(layout.captions) - 1
    return "\n".join(
        f'<text x="{x:.0f}" y="26" text-anchor="end" class="{times.shown(i, None if i == last else i + 1)}">'
        f"{escape(caption)}</text>"
        for i, caption in enumerate(layout.captions)
    )


def _cell(cell: Cell, times: _Times, blocks: bool) -> str:
    x, y = _MARGIN + cell.column * _CHARACTER, _HEAD + cell.line * _LINE
    width = cell.width * _CHARACTER + 5
    tip = f"<title>{escape(cell.tip)}</title>"
    if cell.is_prompt:
        return f"<g>{tip}{_text(cell.label, x, y, 'p')}</g>"
    box = f'x="{x:.1f}" y="{y}" width="{width:.1f}" height="20" rx="3"'
    guesses = "".join(_text(label, x, y, f"g {times.shown(first, until)}") for first, until, label in cell.guesses)
    rgb = "#{:02x}{:02x}{:02x}".format(*colour(cell.confidence))
    line = "" if not blocks else f'<path d="M{x:.1f} {y + 22}h{width:.1f}" class="c {times.shown(cell.finished)}"/>'
    return (
        f'<g class="{times.shown(cell.opened)}">{tip}<rect {box} class="m"/>{guesses}'
        f'<g class="{times.shown(cell.decided)}"><rect {box} fill="{rgb}"/>{_text(cell.label, x, y, "")}</g>{line}</g>'
    )


def _text(label: str, x: float, y: float, classes: str) -> str:
    kind = f' class="{classes}"' if classes else ""
    return f'<text x="{x + 2.5:.1f}" y="{y + 15}"{kind} xml:space="preserve">{escape(label)}</text>'


def _legend(height: int, blocks: bool) -> str:
    y = height - 22
    steps = 10
    boxes = "".join(
        f'<rect x="{_MARGIN + 92 + 14 * i}" y="{y}" width="14" height="12" '
        f'fill="#{"{:02x}{:02x}{:02x}".format(*colour(i / steps))}"/>'
        for i in range(steps + 1)
    )
    finished = (
        f'<path d="M{_MARGIN + 450} {y + 9}h22" class="c"/>'
        f'<text x="{_MARGIN + 478}" y="{y + 11}" class="s">its block is finished</text>'
    )
    return (
        f'<g class="s"><text x="{_MARGIN}" y="{y + 11}" class="s">confidence 0</text>{boxes}'
        f'<text x="{_MARGIN + 92 + 14 * (steps + 1) + 6}" y="{y + 11}" class="s">1</text>'
        f'<rect x="{_MARGIN + 290}" y="{y}" width="22" height="12" rx="3" class="m"/>'
        f'<text x="{_MARGIN + 318}" y="{y + 11}" class="s">not decided yet</text>'
        + (finished if blocks else "")
        + "</g>"
    )
