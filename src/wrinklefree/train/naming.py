"""What a run is called where people compare runs: ``smollm2-135m-s2-muonclip-lr2.4e-3-bs512-3fa9``."""

from __future__ import annotations

import re
import secrets
from pathlib import Path

from wrinklefree.artifact.files import json_bytes, read_json, write_bytes
from wrinklefree.train.recipe import Recipe

_LONGEST = 64
_SUFFIX = 4  # hexadecimal digits of the identity: two settings that the name does not show differ here


def run_name(recipe: Recipe) -> str:
    """Return model, stage, optimizer, peak learning rate, sequences in a step, and the identity's first digits."""
    source = recipe.model.source or "model"
    model = re.sub(r"[^a-z0-9.]+", "-", Path(source).name.removesuffix(".gguf").lower()).strip("-") or "model"
    rest = "-".join(
        (
            re.sub(r"^stage(\d+)(?:_(\d+))?", lambda m: f"s{m[1]}" + (f".{m[2]}" if m[2] else ""), recipe.stage),
            recipe.optimizer.kind,
            f"lr{learning_rate(_peak(recipe))}",
            f"bs{recipe.batch.micro_batch * recipe.batch.accumulation * recipe.device.processes}",
            recipe.identity[:_SUFFIX],
        )
    )
    return f"{model[: max(_LONGEST - len(rest) - 1, 1)]}-{rest}"[-_LONGEST:]


def learning_rate(value: float) -> str:
    """Return 2.4e-3 for 0.0024: three digits at most, and the exponent with its sign."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def run_id(out: Path) -> str:
    """Return the id under which a tracker knows the run in ``out``: made once, kept in ``out``/run.json."""
    path = out / "run.json"
    if path.is_file():
        return str(read_json(path)["id"])
    made = secrets.token_hex(4)
    write_bytes(path, json_bytes({"id": made}))
    return made


def _peak(recipe: Recipe) -> float:
    """Muon's own rate where it has one: that is what such runs are compared by."""
    config = recipe.optimizer
    return config.muon_lr if config.muon_lr is not None and config.kind.startswith("muon") else config.lr
