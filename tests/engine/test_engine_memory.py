"""Ways to hold the weights in memory: mapped or copied, in the layout of the file or another one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from damage import load
from toy_models import make_toy

from wrinklefree import _native
from wrinklefree.errors import InputError


def test_weights_in_memory_and_mapped_are_the_same(copy: Path) -> None:
    tokens = np.arange(5, dtype=np.int32)
    rows = np.empty((2, 256), np.float32)
    for row, keep_mapped in zip(rows, (False, True), strict=True):
        _native.Model.load(str(copy), threads=1, keep_mapped=keep_mapped).forward(0, tokens, row)
    np.testing.assert_array_equal(rows[0], rows[1])


@pytest.mark.parametrize("keep_mapped", [False, True])
@pytest.mark.parametrize("name", ["llama_row_odd_sizes", "dense_row", "dense_group_128"])
def test_stored_in_one_layout_and_run_in_the_other(tmp_path: Path, name: str, keep_mapped: bool) -> None:
    """The codes are the same (tests/native); so must the logits be, up to the order of sums over groups: 1e-5."""
    directory = make_toy(tmp_path, name)
    tokens = np.arange(5, dtype=np.int32)
    rows = np.empty((3, 256), np.float32)
    for row, layout in zip(rows, ("stored", "t2", "t1.6"), strict=True):
        model = _native.Model.load(str(directory), threads=2, keep_mapped=keep_mapped, layout=layout)
        assert layout == "stored" or model.layout == layout + "-r16c64"
        model.forward(0, tokens, row)
    if "group" not in name:
        np.testing.assert_array_equal(rows[1:], rows[[0, 0]])
    np.testing.assert_allclose(rows[1:], rows[[0, 0]], rtol=0, atol=1e-5 * rows[0].std())


def test_unknown_ways_to_hold_weights_are_refused(copy: Path) -> None:
    with pytest.raises(InputError, match=r"layout: found 't3', allowed are stored, t2 and t1.6"):
        _native.Model.load(str(copy), layout="t3")
    with pytest.raises(InputError, match="prefetch_bytes: found -2"):
        _native.Model.load(str(copy), prefetch_bytes=-2)
    assert _native.Model.load(str(copy), prefetch_bytes=512).prefetch_bytes == 512


def test_a_file_cut_off_after_loading_does_no_harm(copy: Path) -> None:
    # In a mapping the missing pages would end the process with SIGBUS.
    model = load(copy)
    before, after = np.empty((2, 256), np.float32)
    model.forward(0, np.arange(5, dtype=np.int32), before)
    os.truncate(copy / "model.safetensors", 0)
    model.truncate(0, 0)
    model.forward(0, np.arange(5, dtype=np.int32), after)
    np.testing.assert_array_equal(before, after)
