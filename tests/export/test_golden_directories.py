"""One file of each format for transformers and early converters, byte for byte, from a model made of a seed by NumPy.

Compared: SHA-256 of what is written with what was written when other programs were seen to read it. A change here is a
change of a format: have transformers load the result again (test_hf_bitnet.py) before the digest is replaced.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import packed_toys
import pytest

from wrinklefree.artifact.files import sha256
from wrinklefree.artifact.packed_reader import packed_parts
from wrinklefree.artifact.parts import ModelParts
from wrinklefree.export.hf_bitnet import HfOptions, write_hf
from wrinklefree.export.hf_plain import write_plain
from wrinklefree.export.sgl_bin import write_sgl_bin


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelParts:
    info = replace(packed_toys.INFO, granularity="tensor", embedding="f16", subln="none")
    return packed_parts(packed_toys.write(tmp_path_factory.mktemp("golden") / "packed", info=info))


GOLDEN = {
    "hf": "efbada2cbfc1a96c653c1da351e9474a7f0a37093c84665d26fd0142f349de71",
    "hf-bitlinear": "ac944421464c66da978e613e5e6ebfdd8ee312c575754fc57ae32222db4c7992",
    "hf-plain": "4ede2d28289844965b6ed82553efa104f8c378054b2dd9b651d6d6ab10c3fef5",
    "bin": "bfd67727f6300cfd036e44c359f71aa00788abc65523156b0a64fa3a0c4e37d8",
}


@pytest.mark.parametrize("format", GOLDEN)
def test_golden_file(tmp_path: Path, model: ModelParts, format: str) -> None:
    written = tmp_path / "model.safetensors"
    if format == "hf":
        write_hf(tmp_path, model)
    elif format == "hf-bitlinear":
        write_hf(tmp_path, model, HfOptions("bitlinear"))
    elif format == "hf-plain":
        write_plain(tmp_path, model)
    else:
        written = tmp_path / "model.bin"
        write_sgl_bin(written, model)
    assert sha256(written) == GOLDEN[format]
