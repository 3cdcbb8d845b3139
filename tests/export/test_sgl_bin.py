"""The ``.bin`` of early converters: both dialects, every type, both ways.

References: files written here field by field as each of the two converters wrote them; the torch checkpoint, for what
the engine computes with an imported file; the parts that were written, bit for bit.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_hf_bitnet as hf
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wrinklefree.artifact.huggingface.floats import widen
from wrinklefree.artifact.parts import NormPart, TernaryPart
from wrinklefree.artifact.sgl_bin import bin_parts
from wrinklefree.artifact.sgl_bin_file import BinFile, pack_planes, padded
from wrinklefree.engine import SamplingParams
from wrinklefree.errors import FormatError, InputError
from wrinklefree.export.sgl_bin import BinOptions, prepare_bin, write_sgl_bin
from wrinklefree.quant.ternary import TernarySpec

Entry = tuple[str, int, NDArray[Any], float | None]
# Zero of either sign, subnormals of float16 and float32, the smallest normal ones, the largest, and ordinary numbers.
SPECIAL = [0.0, -0.0, 2.0**-24, -(2.0**-20), 2.0**-14, 2.0**-149, 2.0**-126, 65504.0, 1.0, -0.333251953125]


def raw(entries: list[Entry], config: Any = None, always: bool = True, count: int | None = None) -> bytes:
    """A file as one of the two converters writes it: with the bytes of a scale always, or where there is one."""
    text = json.dumps({} if config is None else config).encode()
    data = b"SGLBITNT" + struct.pack("<II", 1, len(text)) + text
    data += struct.pack("<I", len(entries) if count is None else count)
    for name, number, array, scale in entries:
        data += struct.pack("<I", len(name.encode())) + name.encode() + struct.pack("<II", number, array.ndim)
        data += struct.pack(f"<{array.ndim}I", *array.shape) + struct.pack("<I", scale is not None)
        if scale is not None or always:
            data += struct.pack("<f", 0.0 if scale is None else scale)
        data += struct.pack("<Q", array.nbytes) + array.tobytes()
    return data


@pytest.mark.parametrize("always", [True, False])
def test_t14_every_type_comes_back_bit_for_bit_in_either_dialect(tmp_path: Path, always: bool) -> None:
    """What an early loader got wrong: the scale's four bytes, 16-bit floats copied as 32, subnormals."""
    wide = np.array(SPECIAL, np.float32)
    with np.errstate(over="ignore", under="ignore"):
        half = wide.astype(np.float16)
    entries: list[Entry] = [
        ("packed", 0, np.arange(64, dtype=np.uint8).reshape(2, 32), 0.1),
        ("f32", 1, wide, None),
        ("f16", 2, half, None),
        ("bf16", 3, np.arange(0, 65536, 257, dtype=np.uint16)[:120], None),
    ]
    (tmp_path / "m.bin").write_bytes(raw(entries, always=always))
    file = BinFile(tmp_path / "m.bin")
    assert file.dialect == ("always" if always else "present")
    for name, _, array, scale in entries:
        np.testing.assert_array_equal(file.array(name).view(np.uint8), array.view(np.uint8))
        found = file.tensors[name].scale
        assert found == (None if scale is None else np.float32(scale))
    np.testing.assert_array_equal(file.floats("f32", (10,)).view(np.uint32), wide.view(np.uint32))
    np.testing.assert_array_equal(file.floats("f16", (10,)), [float(x) for x in half])
    # Reference: a bfloat16 is a float32 whose lower half is zero, in torch too.
    bits = entries[3][2]
    expected = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(widen(file.array("bf16"), "BF16").view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_t14_the_engine_on_an_imported_file_is_the_torch_model(tmp_path: Path, family: str) -> None:
    """Cosine of logits above 0.999 and the same 32 greedy tokens; without rotation every position past 0 is wrong."""
    model, parts = hf.checkpoint(tmp_path / "src", family, tie_word_embeddings=False)
    write_sgl_bin(tmp_path / "m.bin", parts)
    found = bin_parts(tmp_path / "m.bin", tmp_path / "src")
    hf.assert_same_parts(found, prepare_bin(parts))
    engine = hf.engine_of(found, tmp_path / "packed")
    prompt = list(range(3, 23))
    ours, theirs = torch.from_numpy(np.asarray(engine.logits(prompt))), hf.logits(model, len(prompt))
    assert torch.nn.functional.cosine_similarity(ours, theirs).min() > 0.999
    text = list(prompt)
    with torch.no_grad():
        for _ in range(32):
            text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
    made = engine.generate(prompt, SamplingParams(32, 0.0, ignore_eos=True)).run().tokens
    assert [*prompt, *made] == text


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_codes_of_any_width_come_back(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Packing, the padding to 128 columns, and the order of the bits as the early converter wrote it, one by one."""
    rows, columns = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 300))
    seed = data.draw(st.integers(0, 2**32 - 1))
    codes = np.random.default_rng(seed).integers(-1, 2, (rows, columns)).astype(np.int8)
    packed = pack_planes(codes)
    assert packed.shape == (rows, padded(columns) // 4)
    for row, column in ((0, 0), (rows - 1, columns - 1), (rows // 2, columns // 2)):
        block, place = divmod(column, 128)
        byte = int(packed[row, 32 * block + place % 32])
        assert byte >> (6 - 2 * (place // 32)) & 3 == codes[row, column] + 1
    path = tmp_path_factory.mktemp("bin") / "m.bin"
    path.write_bytes(raw([("w", 0, packed, -0.5)]))
    np.testing.assert_array_equal(BinFile(path).ternary("w", rows, columns), codes)


def test_what_a_bin_cannot_hold_is_refused_or_fitted(tmp_path: Path) -> None:
    _, grouped = hf.checkpoint(tmp_path / "groups", spec=TernarySpec("group", 64))
    with pytest.raises(
        InputError, match=r"q_proj: has a scale for each 64 columns, a .bin file has one.*Formats that hold it: packed"
    ):
        write_sgl_bin(tmp_path / "m.bin", grouped)
    with pytest.raises(InputError, match=r"embed_tokens.weight: holds values that BF16 rounds"):
        prepare_bin(hf.checkpoint(tmp_path / "tensor")[1], BinOptions("BF16"))
    assert not (tmp_path / "m.bin").exists()
    write_sgl_bin(tmp_path / "m.bin", grouped, BinOptions(lossy=True))
    fitted = next(part for part in bin_parts(tmp_path / "m.bin").parts if isinstance(part, TernaryPart))
    exact = next(part for part in grouped.parts if isinstance(part, TernaryPart))
    codes, scales = exact.codes_and_scales()
    np.testing.assert_array_equal(fitted.codes_and_scales()[0], codes)
    # Reference: the least of the sum of squares over a fine grid around the fitted scale.
    weights = codes * np.repeat(scales, 64, axis=1)[:, : codes.shape[1]].astype(np.float64)
    grid = float(fitted.codes_and_scales()[1][0]) * np.linspace(0.9, 1.1, 201)
    losses = [np.square(weights - step * codes).sum() for step in grid]
    assert abs(int(np.argmin(losses)) - 100) <= 1


def test_names_of_norms_in_sequence_and_a_packed_head_are_understood(tmp_path: Path) -> None:
    """A norm and its layer in one module are o_proj.0 and o_proj.1; a packed head beside tied tables is its own."""
    _, parts = hf.checkpoint(tmp_path / "src", subln="ones")
    write_sgl_bin(tmp_path / "m.bin", parts)
    file = BinFile(tmp_path / "m.bin")
    entries: list[Entry] = []
    for name, tensor in file.tensors.items():
        for norm, layer in (("self_attn.attn_sub_norm", "self_attn.o_proj"), ("mlp.ffn_sub_norm", "mlp.down_proj")):
            name = name.replace(f"{layer}.weight", f"{layer}.1.weight").replace(norm, f"{layer}.0")
        scale = None if tensor.scale is None else float(tensor.scale)
        entries.append((name, 0 if scale is not None else 1, file.array(tensor.name), scale))
    head = np.random.default_rng(0).integers(-1, 2, (258, 64)).astype(np.int8)
    entries.append(("lm_head.weight", 0, pack_planes(head), 0.25))
    (tmp_path / "s.bin").write_bytes(raw(entries, file.config, always=False))
    found = bin_parts(tmp_path / "s.bin", tmp_path / "src")
    assert found.info.subln == "ones" and found.config["tie_word_embeddings"] is False
    table = next(part for part in found.parts if part.name == "lm_head")
    np.testing.assert_array_equal(table.read(), head * np.float32(0.25))  # type: ignore[union-attr]
    assert sum(part.name.endswith("sub_norm") for part in found.parts if isinstance(part, NormPart)) == 4


def _changed(data: bytes, old: bytes, new: bytes) -> bytes:
    assert data.count(old) == 1
    return data.replace(old, new)


WORD = np.zeros((1, 32), np.uint8)
DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "cannot be read"),
    "magic": (b"SGLBITNX" + bytes(24), "does not begin with SGLBITNT"),
    "version": (b"SGLBITNT" + struct.pack("<II", 2, 0) + bytes(8), "found version 2"),
    "config length": (b"SGLBITNT" + struct.pack("<II", 1, 2**32 - 1), "bytes of config"),
    "config": (b"SGLBITNT" + struct.pack("<II", 1, 3) + b"{]}" + bytes(4), "not valid JSON"),
    "deep config": (
        b"SGLBITNT" + struct.pack("<II", 1, 60_000) + b"[" * 60_000 + bytes(4),
        "not usable JSON|not valid",
    ),
    "count": (raw([], count=2**31), "tensors at byte"),
    "missing tensor": (raw([("w", 0, WORD, 1.0)], count=2), "are announced"),
    "more bytes": (raw([("w", 0, WORD, 1.0)]) + b"\0", "holds 1 bytes more"),
    "name": (_changed(raw([("wwww", 0, WORD, 1.0)]), b"wwww", b"\xff\xfe\xfd\xfc"), "not UTF-8"),
    "type": (raw([("w", 7, WORD, 1.0)]), "as the number of a type"),
    "dimensions": (raw([("w", 0, WORD.reshape((1,) * 9 + (32,)), 1.0)]), "dimensions"),
    "bytes": (raw([("w", 1, WORD, None)]), "does not have 32 bytes"),
    "twice": (raw([("w", 0, WORD, 1.0)] * 2), "appears twice"),
    "float with scale": (raw([("w", 1, np.zeros(4, np.float32), 1.0)]), "with a scale"),
    "packed without scale": (raw([("w", 0, WORD, None)]), "without a scale"),
    **{f"scale {value}": (raw([("w", 0, WORD, value)]), "found the scale") for value in (0.0, np.nan, np.inf)},
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_one_format_error_that_names_the_file(tmp_path: Path, case: str) -> None:
    data, message = DAMAGED[case]
    (tmp_path / "m.bin").write_bytes(data)
    with pytest.raises(FormatError, match=message) as caught:
        bin_parts(tmp_path / "m.bin")
    assert "m.bin" in str(caught.value)


def test_code_three_and_weights_in_the_padding_are_refused(tmp_path: Path) -> None:
    packed = pack_planes(np.zeros((2, 100), np.int8))
    for place, byte, message in ((3, 0xFF, "holds the code 3"), (31, 0x56, "beyond its 100 columns")):
        damaged = packed.copy()
        damaged[1, place] = byte
        (tmp_path / "m.bin").write_bytes(raw([("w", 0, damaged, 1.0)]))
        with pytest.raises(FormatError, match=message):
            BinFile(tmp_path / "m.bin").ternary("w", 2, 100)


def test_scales_that_the_source_divided_by_are_refused(tmp_path: Path) -> None:
    settings = {"quant_method": "bitnet", "quantization_mode": "offline"}
    (tmp_path / "m.bin").write_bytes(raw([], {"quantization_config": settings}))
    with pytest.raises(FormatError, match="were copied as factors"):
        bin_parts(tmp_path / "m.bin")
