"""What a model says it can do, compared with what it does when asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from diffusion_models import KINDS, make_diffusion_toy
from toy_models import BASE, write_toy

from wrinklefree.engine import DecodingSettings, Engine, greedy
from wrinklefree.engine.modes import possible_modes
from wrinklefree.errors import InputError


def modes_that_work(engine: Engine) -> tuple[str, ...]:
    found = []
    for mode in ("ar", "block", "speculative"):
        try:
            engine.generate([1, 2, 3], greedy(2), DecodingSettings(mode=mode)).run()  # type: ignore[arg-type]
        except InputError:
            continue
        found.append(mode)
    return tuple(found)


@pytest.mark.parametrize(("kind", "block_size"), [*((kind, 8) for kind in KINDS), ("llada", None), ("causal", None)])
def test_possible_modes_are_those_that_work(tmp_path: Path, kind: str, block_size: int | None) -> None:
    engine = Engine.load(make_diffusion_toy(tmp_path, kind, block_size), threads=1, context=32)
    assert possible_modes(engine) == modes_that_work(engine)


def test_blocks_need_to_fit_into_a_pass(tmp_path: Path) -> None:
    model = make_diffusion_toy(tmp_path, "causal", block_size=512, max_position_embeddings=1024)
    engine = Engine.load(model, threads=1, context=1024)
    assert possible_modes(engine) == modes_that_work(engine) == ("ar", "speculative")


def test_a_model_without_diffusion_decodes_one_by_one(tmp_path: Path) -> None:
    write_toy(tmp_path, BASE, "row", 64, seed=1)
    assert possible_modes(Engine.load(tmp_path, threads=1, context=32)) == ("ar",)
