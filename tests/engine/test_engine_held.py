"""A model of arrays in memory against the same tensors in a file, and what of such arrays is refused."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from toy_models import TOYS, make_toy

from wrinklefree import _native
from wrinklefree.artifact.safetensors_file import SafetensorsFile
from wrinklefree.errors import FormatError, InputError

TOKENS = np.arange(5, dtype=np.int32)


def held(directory: Path) -> tuple[str, dict[str, NDArray[Any]]]:
    file = SafetensorsFile(directory / "model.safetensors")
    return (directory / "config.json").read_text(), {name: file.array(name) for name in file.tensors}


def logits(model: Any) -> NDArray[np.float32]:
    out = np.empty((len(TOKENS), model.vocab_size), np.float32)
    model.forward(0, TOKENS, out)
    return out


def moved(array: NDArray[Any], offset: int) -> NDArray[Any]:
    """A copy that begins `offset` bytes behind a multiple of 64."""
    memory = np.empty(array.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    memory[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
    return memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)


@pytest.mark.parametrize("name", TOYS)
def test_logits_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    directory = make_toy(tmp_path, name)
    expected = logits(_native.Model.load(str(directory), threads=1))
    config, tensors = held(directory)
    for offset in (0, 8):
        arrays = {key: moved(array, offset) for key, array in tensors.items()}
        model = _native.Model.from_tensors(config, arrays, threads=1)
        arrays.clear()  # the model holds what it needs
        gc.collect()
        np.testing.assert_array_equal(logits(model), expected)


@pytest.mark.parametrize("layout", ["t2", "t1.6"])
def test_held_in_another_layout(layout: str, tmp_path: Path) -> None:
    config, tensors = held(make_toy(tmp_path, "dense_row"))
    model = _native.Model.from_tensors(config, tensors, threads=2, layout=layout)
    assert model.layout == f"{layout}-r16c64"
    np.testing.assert_array_equal(logits(model), logits(_native.Model.load(str(tmp_path), threads=1)))


NORM, CODES, SCALES = (
    "model.norm.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.0.mlp.up_proj.weight_scale",
)
REFUSED: dict[str, tuple[str, Any, str]] = {
    "float64": (NORM, lambda a: a.astype(np.float64), "another type than uint8, float16 and float32"),
    "int8": (CODES, lambda a: a.view(np.int8), "another type"),
    "bool": (CODES, lambda a: a.astype(np.bool_), "another type"),
    "big endian": (NORM, lambda a: a.astype(">f4"), "an array of NumPy"),
    "strided": (NORM, lambda a: np.repeat(a, 2)[::2], "C-contiguous, is needed"),
    "transposed": (CODES, lambda a: np.asfortranarray(a), "C-contiguous, is needed"),
    "a list": (NORM, lambda a: a.tolist(), "an array of NumPy"),
    "objects": (NORM, lambda a: a.astype(object), "an array of NumPy"),
    "none": (NORM, lambda a: None, "an array of NumPy"),
    "half for float": (NORM, lambda a: a.astype(np.float16), r"found 'F16' \[72\], config.json needs F32 \[72\]"),
    "a row less": (CODES, lambda a: a[:-1].copy(), "config.json needs U8"),
    "flat": (CODES, lambda a: a.reshape(-1), "config.json needs U8"),
    "no dimension": (NORM, lambda a: a[:1].reshape(()), "config.json needs F32"),
    "empty": (NORM, lambda a: a[:0], "config.json needs F32"),
    "no codes": (CODES, lambda a: a | 3, "found the unused bit pattern 3"),
    "nan": (SCALES, lambda a: a * np.float32(np.nan), "found an infinity or NaN"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_arrays_are_refused_by_name(case: str, source: Path) -> None:
    name, change, why = REFUSED[case]
    config, tensors = held(source)
    with pytest.raises((InputError, FormatError), match=why) as error:
        _native.Model.from_tensors(config, {**tensors, name: change(tensors[name])}, threads=1, place="here")
    assert name in str(error.value)


def test_wrong_tables_of_arrays_are_refused(source: Path) -> None:
    config, tensors = held(source)
    with pytest.raises(FormatError, match=r"here: 'surplus': config.json has no use"):
        _native.Model.from_tensors(config, {**tensors, "surplus": tensors[NORM]}, place="here")
    with pytest.raises(FormatError, match=r"here: 'model.norm.weight': is missing"):
        _native.Model.from_tensors(config, {k: v for k, v in tensors.items() if k != NORM}, place="here")
    for key in (1, None, b"model.norm.weight", "\ud800"):
        with pytest.raises(InputError, match="tensors: a key is no text"):
            _native.Model.from_tensors(config, {**tensors, key: tensors[NORM]})
    with pytest.raises(FormatError, match="here: config"):
        _native.Model.from_tensors("{", tensors, place="here")
    with pytest.raises(FormatError, match=r"here: config: has no .wrinklefree. object"):
        _native.Model.from_tensors("{}", tensors, place="here")
    with pytest.raises(InputError, match="layout: found 't3'"):
        _native.Model.from_tensors(config, tensors, layout="t3")
