"""Layers with a low-rank correction: checkpoint, packed model, engine and `wf inspect` hold the same numbers.

Reference: the torch model with the factors. What the engine computes of them is in tests/engine.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import packed_toys
import pytest
import torch
import toy_checkpoints as toys
from safetensors.torch import load_file, save_file

from wrinklefree.artifact.inspection.model import inspect_model
from wrinklefree.artifact.manifest import open_packed, read_packed
from wrinklefree.artifact.safetensors_file import SafetensorsFile, write_safetensors
from wrinklefree.errors import FormatError, InputError, VerificationError
from wrinklefree.export.export import export
from wrinklefree.export.verify import check_codes
from wrinklefree.models.io import load_checkpoint, save_checkpoint
from wrinklefree.quant.low_rank import add_factors, low_rank_linears

GATE = "model.layers.0.mlp.gate_proj"
RANKS = {GATE: 5, "model.layers.1.mlp.down_proj": 7, "model.layers.1.self_attn.o_proj": 2,
         "model.layers.0.self_attn.k_proj": 3}  # fmt: skip


def corrected(out: Path, **changes: Any) -> Path:
    """A toy checkpoint with factors so large that leaving them out would be another model."""
    plain = toys.write(out.with_name("plain"), **changes)
    model, tokenizer, info = load_checkpoint(plain, changes.get("dtype", torch.float32))
    add_factors(model, RANKS)
    torch.manual_seed(3)
    for _, layer in low_rank_linears(model):
        torch.nn.init.normal_(layer.low_rank_u, std=0.5)
    save_checkpoint(model, tokenizer, out, info)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_gives_its_factors_back_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    source = corrected(tmp_path / "src", dtype=dtype)
    model, tokenizer, info = load_checkpoint(source, dtype)
    save_checkpoint(model, tokenizer, tmp_path / "again", info)
    assert {name: layer.rank for name, layer in low_rank_linears(model)} == RANKS
    one, two = load_file(source / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert one.keys() == two.keys() and one[f"{GATE}.low_rank_u"].dtype == dtype
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    "changes",
    [{}, {"subln": "identity"}, {"family": "qwen3", "dtype": torch.bfloat16}, {"hidden_size": 72, "head_dim": 18}],
    ids=["llama", "subln", "qwen3-bf16", "odd-sizes"],
)
def test_engine_follows_its_source(tmp_path: Path, changes: dict[str, Any]) -> None:
    report = export(corrected(tmp_path / "src", **changes), tmp_path / "out", embedding="f16", threads=1)
    assert report.agreement is not None and report.agreement.passed
    assert report.agreement.logit_cosine_min > 0.999
    packed = open_packed(tmp_path / "out")
    assert dict(packed.info.low_rank) == RANKS
    model, _, _ = load_checkpoint(tmp_path / "src")
    for name, layer in low_rank_linears(model):
        u, v = (packed.weights.array(f"{name}.low_rank_{factor}") for factor in "uv")
        np.testing.assert_array_equal(u, layer.low_rank_u.detach().numpy().astype(np.float16))
        np.testing.assert_array_equal(v, layer.low_rank_v.detach().numpy().astype(np.float16))
    change = next(change for change in report.tensors if change.name == GATE)
    assert change.written_type.endswith("F16 factors of rank 5")
    rows, columns = 160, model.get_submodule(GATE).in_features
    assert change.written_bytes > 2 * 5 * (rows + columns)


def test_without_factors_nothing_of_them_is_written(tmp_path: Path) -> None:
    export(toys.write(tmp_path / "src"), tmp_path / "out", threads=1, greedy_tokens=4)
    ours = json.loads((tmp_path / "out" / "config.json").read_text())["wrinklefree"]
    assert "low_rank" not in ours
    assert read_packed(tmp_path / "out")[1].low_rank == {}


def test_inspect_shows_ranks_and_counts_factors(tmp_path: Path) -> None:
    source = corrected(tmp_path / "src")
    export(source, tmp_path / "out", threads=1, greedy_tokens=4)
    found, plain = inspect_model(tmp_path / "out"), inspect_model(tmp_path / "src")
    assert found.training["low_rank"] == "rank 2 and 3 and 5 and 7 in 4 layers"
    rows = {row.name: row for row in found.tensors}
    assert rows[f"{GATE}.low_rank_u"].shape == (160, 5) and rows[f"{GATE}.low_rank_v"].type_name == "F16"
    scales = sum(row.num_parameters for row in plain.tensors if row.name.endswith("weight_scale"))
    assert found.num_parameters == plain.num_parameters - scales


def test_a_wrong_factor_is_noticed(tmp_path: Path) -> None:
    source = corrected(tmp_path / "src")
    export(source, tmp_path / "out", threads=1, verify=False)
    file = SafetensorsFile(tmp_path / "out" / "model.safetensors")
    tensors = {name: file.array(name).copy() for name in file.tensors}
    tensors[f"{GATE}.low_rank_v"][2, 3] += 0.01
    write_safetensors(tmp_path / "out" / "model.safetensors", tensors)
    with pytest.raises(VerificationError, match=f"{GATE}.low_rank_v: the file's values"):
        check_codes(tmp_path / "out", load_checkpoint(source)[0])


def test_a_factor_beyond_float16_is_refused(tmp_path: Path) -> None:
    source = corrected(tmp_path / "src")
    tensors = load_file(source / "model.safetensors")
    tensors[f"{GATE}.low_rank_u"][0, 0] = 1e6
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(InputError, match=f"{GATE}.low_rank_u: holds values beyond float16"):
        export(source, tmp_path / "out", threads=1)
    assert not (tmp_path / "out").exists()


CHECKPOINT_DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "u missing": (lambda t: t.pop(f"{GATE}.low_rank_u"), "missing tensors .*low_rank_u"),
    "v missing": (lambda t: t.pop(f"{GATE}.low_rank_v"), "unknown tensors .*low_rank_u"),
    "ranks differ": (lambda t: t.update({f"{GATE}.low_rank_u": torch.zeros(160, 4)}), "low_rank_u has shape"),
    "v a scalar": (lambda t: t.update({f"{GATE}.low_rank_v": torch.zeros(())}), "found rank 0"),
    "of no layer": (lambda t: t.update({"model.norm.low_rank_v": torch.zeros(2, 2)}), "is no ternary layer"),
    "too high": (lambda t: t.update({f"{GATE}.low_rank_v": torch.zeros(65, 64)}), "takes 1 to 64"),
}


@pytest.mark.parametrize("name", CHECKPOINT_DAMAGE)
def test_damaged_checkpoints(tmp_path: Path, name: str) -> None:
    source = corrected(tmp_path / "src")
    edit, expected = CHECKPOINT_DAMAGE[name]
    tensors = load_file(source / "model.safetensors")
    edit(tensors)
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(FormatError, match=expected):
        load_checkpoint(source)


PACKED_DAMAGE: dict[str, tuple[dict[str, Any] | list[Any], str]] = {
    "of no layer": ({"model.norm": 3}, "low_rank: model.norm: found 3, the name of a ternary layer is needed"),
    "too high": ({**RANKS, GATE: 65}, f"{GATE}: found 65, an integer from 1 to 64 is needed"),
    "no number": ({**RANKS, GATE: "5"}, f"{GATE}: found '5'"),
    "another": ({**RANKS, GATE: 4}, rf"{GATE}.low_rank_u: found F16 \[160, 5\], config.json asks for F16 \[160, 4\]"),
    "one too few": ({GATE: 5}, "unknown tensor .*low_rank"),
    "no object": ([3], "low_rank: found .*an object or null is needed"),
}


@pytest.mark.parametrize("name", PACKED_DAMAGE)
def test_ranks_that_are_not_those_of_the_file(tmp_path: Path, name: str) -> None:
    export(corrected(tmp_path / "src"), tmp_path / "out", threads=1, verify=False)
    ranks, expected = PACKED_DAMAGE[name]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["wrinklefree"]["low_rank"] = ranks
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match=expected):
        open_packed(tmp_path / "out")


def test_packed_toys_of_before_still_open(tmp_path: Path) -> None:
    packed_toys.write(tmp_path / "toy")
    assert open_packed(tmp_path / "toy").info.low_rank == {}
