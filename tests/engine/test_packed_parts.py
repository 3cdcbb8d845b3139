"""A packed directory as parts and written again: the same bytes; what a part says is what the file holds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_models import TOYS, add_tokenizer, make_toy

from wrinklefree.artifact.manifest import changed_files, read_packed
from wrinklefree.artifact.packed_reader import packed_parts
from wrinklefree.artifact.packed_writer import write_packed
from wrinklefree.artifact.parts import TablePart, TernaryPart, stored_tables
from wrinklefree.artifact.safetensors_file import SafetensorsFile
from wrinklefree.errors import FormatError


def written_again(source: Path, out: Path) -> Path:
    out.mkdir()
    parts = packed_parts(source)
    write_packed(out, parts, stored_tables(parts))
    return out


@pytest.mark.parametrize("name", TOYS)
def test_written_again_it_is_the_same_to_the_byte(name: str, tmp_path: Path) -> None:
    source = make_toy(tmp_path / "source", name)
    add_tokenizer(source)
    (source / "generation_config.json").write_text('{"eos_token_id":  7}')
    first = written_again(source, tmp_path / "first")
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (first / file).read_bytes() == (source / file).read_bytes()
    ours, theirs = (SafetensorsFile(d / "model.safetensors") for d in (first, source))
    assert ours.tensors.keys() == theirs.tensors.keys()
    for tensor in theirs.tensors:
        assert ours.array(tensor).tobytes() == theirs.array(tensor).tobytes(), tensor
    _, info = read_packed(first)
    assert replace(info, files={}) == read_packed(source)[1] and changed_files(first, info) == []
    second = written_again(first, tmp_path / "second")
    assert sorted(p.name for p in second.iterdir()) == sorted(p.name for p in first.iterdir())
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def test_a_table_of_another_precision_is_rounded_anew(tmp_path: Path) -> None:
    parts = packed_parts(make_toy(tmp_path / "source", "untied_q4_head"))
    (kept, _) = stored_tables(parts).values()
    (again, head) = stored_tables(replace(parts, info=replace(parts.info, embedding="q8"))).values()
    assert kept.format == "q4" and again.format == head.format == "q8"
    table = next(part for part in parts.parts if isinstance(part, TablePart))
    np.testing.assert_array_equal(kept.values(), table.read())
    assert 0 < np.abs(again.values() - table.read()).max() <= np.abs(table.read()).max() / 254 * 1.001


def test_other_weights_than_recorded_are_refused(tmp_path: Path) -> None:
    make_toy(tmp_path / "source", "llama_tensor")
    first = written_again(tmp_path / "source", tmp_path / "first")
    weights = first / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(FormatError, match=r"model\.safetensors: the SHA-256"):
        packed_parts(first)


def test_codes_that_stand_for_nothing_are_refused_by_the_layers_name(tmp_path: Path) -> None:
    source = make_toy(tmp_path / "source", "llama_tensor")
    file = SafetensorsFile(source / "model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    data = bytearray(file.path.read_bytes())
    data[file.data_begin + file.tensors[f"{name}.weight"].begin] = 0xFF
    file.path.write_bytes(data)
    assert "files" not in json.loads((source / "config.json").read_text())["wrinklefree"]
    part = next(part for part in packed_parts(source).parts if part.name == name)
    assert isinstance(part, TernaryPart)
    with pytest.raises(FormatError, match=rf"model\.safetensors: {name}: packed codes: found the unused"):
        part.codes_and_scales()
