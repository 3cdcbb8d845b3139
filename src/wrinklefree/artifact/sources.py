"""A ternary model of any format as its parts: which reader takes a path, told by what is there."""

from __future__ import annotations

from pathlib import Path

from wrinklefree.artifact.gguf.container import is_gguf
from wrinklefree.artifact.gguf.read_model import gguf_parts
from wrinklefree.artifact.huggingface.read_model import hf_parts
from wrinklefree.artifact.manifest import model_format, read_config
from wrinklefree.artifact.packed_reader import packed_parts
from wrinklefree.artifact.parts import ModelParts
from wrinklefree.artifact.sgl_bin import bin_parts
from wrinklefree.artifact.sgl_bin_file import is_bin
from wrinklefree.errors import FormatError, InputError


def read_parts(path: str | Path, tokenizer_dir: str | Path | None = None) -> ModelParts:
    """Return the parts of a packed directory, a GGUF or ``.bin`` file, or a ternary directory of Hugging Face's.

    Nothing big is kept in memory before a part is asked for. ``tokenizer_dir``: where a ``.bin`` file's tokenizer is,
    if not beside it.

    Raises: InputError when nothing is there, or a checkpoint, whose latents only torch turns into codes; FormatError
    when it is damaged, of an unknown format, or not ternary.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: found no such model (a directory or a .gguf file is needed)")
    if path.is_file():
        if is_gguf(path):
            return gguf_parts(path)
        if is_bin(path):
            return bin_parts(path, tokenizer_dir)
        raise FormatError(f"{path}: is no GGUF file and no .bin of early converters; give one, or a model's directory")
    kind = model_format(read_config(path))
    if kind == "packed":
        return packed_parts(path)
    if kind == "checkpoint":
        raise InputError(f"{path}: is a checkpoint in training's form; write it first: wf export {path} OUT")
    return hf_parts(path)
