"""A trace as an animated GIF, a frame for each pass: the layout of the SVG, for places that show no SVG.

Each frame adds to the one before only what is new, so the file stays small.
"""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.errors import InputError, MissingDependencyError
from wrinklefree.eval.trace import Trace
from wrinklefree.eval.trace_layout import COLUMNS, Cell, Layout, colour, lay_out

_SIZE = 14
_LINE, _MARGIN, _HEAD = 24, 14, 38
_HOLD_MILLISECONDS = 3000
_MOST_FRAMES = 2000
_MASK, _GUESS, _INK, _PROMPT, _PAPER = (213, 213, 213), (119, 119, 119), (17, 17, 17), (102, 102, 102), (255, 255, 255)


def gif(trace: Trace, seconds: float = 0.35) -> bytes:
    """Return the GIF file of a trace, ``seconds`` (to a hundredth) for each pass and a rest at the end.

    Raises: InputError for more passes than a GIF is good for, MissingDependencyError without Pillow.
    """
    layout = lay_out(trace)
    if layout.frames > _MOST_FRAMES:
        raise InputError(f"trace: {layout.frames - 1} passes are too many for a GIF; write an .svg instead")
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise MissingDependencyError(
            "a GIF needs Pillow, which comes with: pip install 'wrinklefree[quickstart]'; an .svg needs nothing"
        ) from error
    font = _font()
    character = font.getlength("0")
    size = (round(2 * _MARGIN + (COLUMNS + 1) * character), _HEAD + layout.lines * _LINE + _MARGIN)
    canvas = Image.new("RGB", size, _PAPER)
    painter = _Painter(ImageDraw.Draw(canvas), font, character)
    painter.text(_MARGIN, 12, layout.title, _INK)
    palette = _palette()
    frames = []
    for frame in range(layout.frames):
        painter.frame(layout, frame, size[0])
        frames.append(Image.fromarray(_indexed(np.asarray(canvas), palette)))
        frames[-1].putpalette(palette.astype(np.uint8).tobytes())
    each = max(20, round(seconds * 1000))
    durations = [each] * (len(frames) - 1) + [_HOLD_MILLISECONDS]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=False, disposal=1
    )
    return buffer.getvalue()


class _Painter:
    """Draws what changes from frame to frame on one canvas."""

    def __init__(self, draw: Any, font: Any, character: float) -> None:
        self._draw, self._font, self._character = draw, font, character

    def frame(self, layout: Layout, frame: int, width: int) -> None:
        """Bring the canvas from the frame before to this one."""
        caption = layout.captions[frame]
        longest = self._character * max(map(len, layout.captions))
        self._draw.rectangle((width - _MARGIN - longest, 8, width, _HEAD - 6), fill=_PAPER)
        self.text(round(width - _MARGIN - self._font.getlength(caption)), 12, caption, _INK)
        for cell in layout.cells:
            self._cell(cell, frame, layout.blocks)

    def _cell(self, cell: Cell, frame: int, blocks: bool) -> None:
        x, y = _MARGIN + cell.column * self._character, _HEAD + cell.line * _LINE
        box = (round(x), y, round(x + cell.width * self._character + 4), y + 18)
        if cell.is_prompt:
            if frame == 0:
                self.text(round(x + 2), y + 1, cell.label, _PROMPT)
            return
        if frame == cell.decided:
            self._draw.rounded_rectangle(box, 3, fill=colour(cell.confidence))
            self.text(box[0] + 2, y + 1, cell.label, _INK)
        elif cell.opened <= frame < cell.decided:
            guess = next((label for first, until, label in cell.guesses if first <= frame < until), None)
            if frame in (cell.opened, *(first for first, _, _ in cell.guesses)):
                self._draw.rounded_rectangle(box, 3, fill=_MASK)
                if guess is not None:
                    self.text(box[0] + 2, y + 1, guess, _GUESS)
        if blocks and frame == cell.finished:
            self._draw.line((box[0], y + 20, box[2], y + 20), fill=_INK, width=2)

    def text(self, x: int, y: int, text: str, fill: tuple[int, int, int]) -> None:
        """Draw text; what the font lacks is its box for missing characters."""
        self._draw.text((x, y), text, font=self._font, fill=fill)


def _palette() -> NDArray[np.int32]:
    """Return the colours of all frames, int32 [N <= 256, 3]: those of confidence, greys and what letters need."""
    scale = [colour(step / 100) for step in range(101)]
    greys = [(round(shade * 2.55),) * 3 for shade in range(101)]
    # Letters on coloured cells are smoothed: shades between ink and each tenth of the scale.
    shades = [tuple(round(v * share) for v in colour(step / 10)) for step in range(11) for share in (0.25, 0.5, 0.75)]
    return np.array([_PAPER, _MASK, _GUESS, _INK, _PROMPT, *scale, *greys, *shades], np.int32)


def _indexed(pixels: NDArray[np.uint8], palette: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Return the index of the nearest colour of the palette for each pixel [H, W, 3] (Pillow's own is not exact)."""
    wide = pixels.astype(np.int32)
    packed, inverse = np.unique(wide @ np.array([1 << 16, 1 << 8, 1], np.int32), return_inverse=True)
    colours = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1)
    nearest = ((colours[:, None] - palette) ** 2).sum(axis=2).argmin(axis=1)
    return nearest.astype(np.uint8)[inverse].reshape(pixels.shape[:2])


def _font() -> Any:
    """Return a monospaced font: the system's DejaVu, that of matplotlib's files, or Pillow's own."""
    from PIL import ImageFont

    names = ["DejaVuSansMono.ttf"]
    found = importlib.util.find_spec("matplotlib")
    if found is not None and found.origin is not None:
        names.append(str(Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSansMono.ttf"))
    for name in names:
        try:
            return ImageFont.truetype(name, _SIZE)
        except OSError:
            continue
    return ImageFont.load_default(_SIZE)
