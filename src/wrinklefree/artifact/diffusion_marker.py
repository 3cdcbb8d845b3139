"""What a checkpoint says of a diffusion model: its MASK token, its blocks, and who sees whom. No torch.

Training writes it, decoding obeys it: in torch (`models.block_decoding`) and in the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from wrinklefree.errors import InputError, unknown_name

Noised = Literal["bidirectional", "causal"]
Clean = Literal["block_causal", "causal"]
Variant = Literal["fast_dllm", "llada", "causal"]
NOISED: tuple[Noised, ...] = ("bidirectional", "causal")
CLEANS: tuple[Clean, ...] = ("block_causal", "causal")
VARIANTS: tuple[Variant, ...] = ("fast_dllm", "llada", "causal")


@dataclass(frozen=True)
class AttentionRule:
    """How far a query sees within its own half: the noised one (the current block), the clean one (finished text)."""

    noised: Noised = "bidirectional"
    clean: Clean = "block_causal"

    def __post_init__(self) -> None:
        if self.noised not in NOISED:
            raise unknown_name("attention of the noised half", self.noised, NOISED)
        if self.clean not in CLEANS:
            raise unknown_name("attention of the clean half", self.clean, CLEANS)


@dataclass(frozen=True)
class DiffusionMarker:
    """What decoding must know of a diffusion model: ``dlm`` in the ``wrinklefree`` object of its config.json.

    ``block_size`` None: a document is one block. ``token_shift``: the state before a token predicts it.
    ``variant`` names the attention and the loss it was trained with; ``clean_half`` is the attention among finished
    tokens.
    """

    mask_token_id: int
    block_size: int | None
    token_shift: bool
    variant: str
    clean_half: Clean

    @property
    def rule(self) -> AttentionRule:
        """Return the attention: the current block is the noised half, what is finished is the clean half."""
        return AttentionRule("causal" if self.variant == "causal" else "bidirectional", self.clean_half)

    def to_json(self) -> dict[str, Any]:
        """Return the object as it stands in config.json."""
        return asdict(self)

    @classmethod
    def of(cls, raw: Mapping[str, Any] | None, place: str) -> DiffusionMarker:
        """Return the checked marker. Raises: InputError when the model was not trained for diffusion."""
        if raw is None:
            raise InputError(f"{place}: was not trained for block diffusion (no dlm marker in its config.json)")
        try:
            marker = cls(**{name: raw[name] for name in cls.__dataclass_fields__})
        except KeyError as error:
            raise InputError(f"{place}: its dlm marker has no {error}; train it again") from error
        mask, size = marker.mask_token_id, marker.block_size
        whole = type(mask) is int and mask >= 0 and (size is None or (type(size) is int and size >= 1))
        known = marker.variant in VARIANTS and marker.clean_half in CLEANS and type(marker.token_shift) is bool
        if not (whole and known):
            raise InputError(f"{place}: its dlm marker is damaged ({dict(raw)})")
        return marker
