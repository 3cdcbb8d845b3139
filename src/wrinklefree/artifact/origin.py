"""What a model knows of itself beyond its tensors, as it travels in the files of other programs.

GGUF carries it as JSON under the key ``wrinklefree.origin``, Hugging Face's config.json as ``wrinklefree_origin``.
Other programs ignore it; without it a diffusion model would come back as a plain one. What the tensors say is never
taken from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wrinklefree.artifact.config import Fields
from wrinklefree.artifact.diffusion_marker import DiffusionMarker
from wrinklefree.artifact.json_text import parse_json
from wrinklefree.artifact.manifest import SUBLN, PackedInfo
from wrinklefree.artifact.packing import Granularity
from wrinklefree.artifact.tables import TableFormat
from wrinklefree.errors import FormatError

GGUF_KEY = "wrinklefree.origin"
HF_KEY = "wrinklefree_origin"
ORIGIN_VERSION = 1
MAX_ORIGIN_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class Origin:
    """The fields of `PackedInfo` that no tensor tells. A file of others has the defaults."""

    stage: str = "imported"
    subln: str = "none"
    dlm: dict[str, Any] | None = None
    teacher: str | None = None
    calibration: str | None = None
    tokens_seen: int = 0
    recipe_hash: str | None = None

    def info(self, granularity: Granularity, group_size: int, embedding: TableFormat) -> PackedInfo:
        """Return the info of a model with this origin whose scales are such."""
        return PackedInfo(
            granularity=granularity,
            group_size=group_size,
            embedding=embedding,
            subln=self.subln,
            stage=self.stage,
            dlm=self.dlm,
            teacher=self.teacher,
            calibration=self.calibration,
            tokens_seen=self.tokens_seen,
            recipe_hash=self.recipe_hash,
        )


def origin_of(info: PackedInfo) -> dict[str, Any]:
    """Return the JSON object that goes into a foreign file."""
    names = ("stage", "subln", "dlm", "teacher", "calibration", "tokens_seen", "recipe_hash")
    return {"origin_version": ORIGIN_VERSION, **{name: getattr(info, name) for name in names}}


def parse_origin(raw: Mapping[str, Any] | str | None, place: str) -> Origin:
    """Return the checked origin from an object or its JSON text; None gives the defaults.

    Raises: FormatError naming ``place`` and the key.
    """
    if raw is None:
        return Origin()
    if isinstance(raw, str):
        if len(raw) > MAX_ORIGIN_CHARACTERS:
            raise FormatError(f"{place}: found {len(raw)} characters, at most {MAX_ORIGIN_CHARACTERS} are allowed")
        raw = parse_json(raw, place)
    if not isinstance(raw, Mapping):
        raise FormatError(f"{place}: an object is needed")
    fields = Fields(raw, place)
    version = raw.get("origin_version")
    if type(version) is not int or version != ORIGIN_VERSION:
        raise fields.wrong("origin_version", f"this release reads {ORIGIN_VERSION}")
    dlm = fields.object("dlm")
    if dlm is not None:
        DiffusionMarker.of(dlm, f"{place}: dlm")
    return Origin(
        stage=fields.text("stage") or "unknown",
        subln=fields.choice("subln", SUBLN),
        dlm=dlm,
        teacher=fields.text("teacher"),
        calibration=fields.text("calibration"),
        tokens_seen=fields.size("tokens_seen", 1 << 62, default=0, least=0),
        recipe_hash=fields.text("recipe_hash"),
    )
