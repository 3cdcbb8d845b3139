"""What `inspect_model` reports, against counts made by hand on toy directories."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import packed_toys
import pytest

from wrinklefree.artifact.inspection.model import inspect_model, share_of_zeros
from wrinklefree.artifact.packing import LAYOUTS, PackedShape, pack_codes, unpack_codes
from wrinklefree.artifact.safetensors_file import write_safetensors
from wrinklefree.artifact.tables import TABLE_FORMATS
from wrinklefree.errors import FormatError, InputError


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (16, 64), (5, 65), (37, 700), (16, 320)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_zeros_are_counted_without_the_padding(rows: int, columns: int, layout: Any) -> None:
    ternary = np.random.default_rng(0).integers(-1, 2, (rows, columns)).astype(np.int8)
    expected = float((ternary == 0).mean())
    assert share_of_zeros(pack_codes(ternary, layout), PackedShape(rows, columns, layout)) == pytest.approx(expected)


@pytest.mark.parametrize("embedding", TABLE_FORMATS)
def test_a_packed_model(tmp_path: Path, embedding: Any) -> None:
    info = replace(packed_toys.INFO, subln="none", embedding=embedding)
    found = inspect_model(packed_toys.write(tmp_path, info=info))
    linears = 2 * (64 * 64 * 2 + 32 * 64 * 2 + 64 * 160 * 3)
    assert found.num_parameters == linears + 258 * 64 + 5 * 64
    codes = sum(row.num_parameters for row in found.tensors if row.type_name == "ternary t2-r16c64")
    assert codes == linears
    packed = open_codes(tmp_path, "model.layers.0.self_attn.q_proj.weight")
    row = next(row for row in found.tensors if row.name == "model.layers.0.self_attn.q_proj.weight")
    assert row.zeros == pytest.approx(float((unpack_codes(packed, 64, 64) == 0).mean()))
    assert found.zeros is not None and 0.3 < found.zeros < 0.4
    assert found.tokenizer["bos"] == "<s> (256)" and found.architecture["qk_norm"] is False
    assert json.loads(json.dumps(found.to_json()))["bits_per_weight"] == found.bits_per_weight


def open_codes(directory: Path, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    from wrinklefree.artifact.manifest import open_packed

    return open_packed(directory).weights.array(name)


def _sharded(directory: Path, weight_map: object) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text('{"model_type": "llama", "hidden_size": 4}')
    for number in (1, 2):
        arrays = {f"t{number}": np.zeros((number, 4), np.float32)}
        write_safetensors(directory / f"model-{number}.safetensors", arrays)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def test_a_sharded_hugging_face_model(tmp_path: Path) -> None:
    found = inspect_model(_sharded(tmp_path / "m", {"t1": "model-1.safetensors", "t2": "model-2.safetensors"}))
    assert found.kind == "hf" and found.zeros is None
    assert [(row.name, row.shape) for row in found.tensors] == [("t1", (1, 4)), ("t2", (2, 4))]
    assert found.bits_per_weight == 32.0 and found.tokenizer == {}


@pytest.mark.parametrize("weight_map", [{"t1": "../secret.safetensors"}, {"t1": 3}, ["x"], None])
def test_an_index_cannot_point_outside(tmp_path: Path, weight_map: object) -> None:
    with pytest.raises(FormatError, match=r"weight_map: "):
        inspect_model(_sharded(tmp_path / "m", weight_map))


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found no such model"):
        inspect_model(tmp_path / "none")
    with pytest.raises(FormatError, match=r"config\.json"):
        inspect_model(tmp_path)
