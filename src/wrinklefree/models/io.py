"""Reading and writing models: a Hugging Face source, a GGUF file, and our checkpoint directory.

The checkpoint directory is Hugging Face's layout; ``config.json`` carries one more object, ``wrinklefree``
(`CheckpointInfo`), and the safetensors hold latents, fitted scales (``*.weight_scale``), low-rank factors
(``*.low_rank_u``, ``*.low_rank_v``) and SubLN gains under the source family's own names. No pickle is ever read.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from wrinklefree.errors import FormatError, InputError
from wrinklefree.models.bitnet import is_bitnet_quantized, load_latents
from wrinklefree.models.classification import is_classifier
from wrinklefree.models.convert import convert_model
from wrinklefree.models.gguf import gguf_config, is_mapped, load_gguf
from wrinklefree.models.subln import SublnInit
from wrinklefree.quant.bitlinear import bit_linears
from wrinklefree.quant.low_rank import add_factors
from wrinklefree.quant.ternary import TernarySpec
from wrinklefree.version import CHECKPOINT_FORMAT_VERSION

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class CheckpointInfo:
    """The ``wrinklefree`` object of a converted model's config.json."""

    stage: str
    spec: TernarySpec = field(default_factory=TernarySpec)
    subln: str = "none"
    strength: float = 1.0
    calibration: str | None = None
    teacher: str | None = None
    tokens_seen: int = 0
    recipe_hash: str | None = None
    dlm: dict[str, Any] | None = None
    exclude: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the object as it stands in config.json."""
        fields = asdict(self)
        spec = fields.pop("spec")
        return {"format": "checkpoint", "format_version": CHECKPOINT_FORMAT_VERSION, **spec, **fields}

    @classmethod
    def from_json(cls, raw: Any, place: str) -> CheckpointInfo:
        """Return the checked object. Raises: FormatError naming ``place``."""
        if not isinstance(raw, dict):
            raise FormatError(f"{place}: `wrinklefree` is not an object; the directory is no converted model")
        if raw.get("format") != "checkpoint":
            raise FormatError(f"{place}: format is {raw.get('format')!r}, a checkpoint is needed (not a packed model)")
        if raw.get("format_version") != CHECKPOINT_FORMAT_VERSION:
            found = raw.get("format_version")
            raise FormatError(f"{place}: format_version {found!r}, this release reads {CHECKPOINT_FORMAT_VERSION}")
        known = {"stage", "subln", "strength", "calibration", "teacher", "tokens_seen", "recipe_hash", "dlm", "exclude"}
        try:
            spec = TernarySpec(raw["granularity"], raw["group_size"], raw.get("quantizer", "absmean"))
            given = {key: raw[key] for key in known if key in raw}
            info = cls(spec=spec, **{**given, "exclude": tuple(given.get("exclude", ()))})
        except (KeyError, TypeError, InputError) as error:
            raise FormatError(f"{place}: `wrinklefree` is damaged: {error}") from error
        return info


def load_source(src: str, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model in ``dtype`` and the tokenizer of a Hugging Face id, a directory, or a ``.gguf`` file.

    A GGUF file is dequantised (by `models.gguf` where it is of an architecture of ours, else by transformers), packed
    BitNet weights are unpacked. Code that a repository carries is never run.

    Raises: InputError when nothing is there, FormatError when what is there cannot be read.
    """
    where = locate_source(src)
    if "gguf_file" in where and is_mapped(src):
        with _quiet_loading(src):
            return load_gguf(src, dtype)
    with _quiet_loading(src):
        config = AutoConfig.from_pretrained(**where)
        if is_bitnet_quantized(config):
            model = load_latents(config, src, dtype)
        else:
            model = _auto_class(config).from_pretrained(**where, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(**where)
    _forget_gguf(model)
    return model.eval(), tokenizer


def source_config(src: str) -> dict[str, Any]:
    """Return the configuration of a Hugging Face id, directory or GGUF file, without its weights.

    Raises: InputError when nothing is there, FormatError when what is there cannot be read.
    """
    where = locate_source(src)
    with _quiet_loading(src):
        mapped = "gguf_file" in where and is_mapped(src)
        found = gguf_config(src) if mapped else AutoConfig.from_pretrained(**where)
    config: dict[str, Any] = found.to_dict()
    return config


def locate_source(src: str) -> dict[str, Any]:
    """Return the arguments with which transformers finds ``src``; nothing is loaded yet.

    Raises: InputError when it is no Hugging Face id and nothing is there, or it is converted already.
    """
    path = Path(src)
    where: dict[str, Any] = {"pretrained_model_name_or_path": src}
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"{src}: no such file; give a GGUF file, a model directory or a Hugging Face id")
        where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    elif path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"{src}: the directory has no config.json; it is no Hugging Face model")
        if "wrinklefree" in _read_config(path):
            raise InputError(f"{src}: is a converted model already; an original model is needed here")
    elif path.exists() or src.startswith((".", "/", "~")) or src.count("/") > 1:
        raise InputError(f"{src}: no such model; give a directory, a .gguf file or a Hugging Face id")
    return where


def load_checkpoint(
    path: str | Path, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, CheckpointInfo]:
    """Return model, tokenizer and info of a directory that `save_checkpoint` wrote, latents in ``dtype``.

    Raises: InputError when the directory is missing, FormatError when it is damaged or not converted.
    """
    path = Path(path)
    if not (path / "config.json").is_file():
        raise InputError(f"{path}: no checkpoint there (config.json is missing); make one with wf convert")
    info = CheckpointInfo.from_json(_read_config(path).get("wrinklefree"), f"{path}/config.json")
    with _quiet_loading(str(path)):
        config = AutoConfig.from_pretrained(path)
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = _auto_class(config).from_config(config, dtype=dtype)
        tensors = load_file(path / WEIGHTS)
    subln: SublnInit = "ones" if info.subln != "none" else "none"
    convert_model(model, info.spec, subln=subln, strength=info.strength, exclude=info.exclude)
    _add_factors(model, tensors, f"{path}/{WEIGHTS}")
    for name, layer in bit_linears(model):
        if f"{name}.weight_scale" in tensors:
            layer.set_scale(torch.ones(info.spec.scale_shape(layer.out_features, layer.in_features)))
        if f"{name}.kept_columns" in tensors:
            layer.kept_columns = torch.zeros(layer.in_features, dtype=torch.bool)
    _load_exactly(model, tensors, f"{path}/{WEIGHTS}")
    return model.eval(), tokenizer, info


def save_checkpoint(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    info: CheckpointInfo | None,
    replace_existing: bool = False,
    state: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write ``model`` to the directory ``out``; it appears whole or not at all. ``info`` None: it is not converted.

    ``state``: what is written instead of the model's own ``state_dict()``, for a model whose parameters are elsewhere.

    Raises: InputError when ``out`` exists and ``replace_existing`` is not set, or when the disk has no room.
    """
    if out.exists() and not replace_existing:
        raise InputError(f"{out}: exists already; choose another directory or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        config = json.loads(model.config.to_json_string(use_diff=False))
        config.pop("_name_or_path", None)
        config["architectures"] = [type(model).__name__]
        if info is not None:
            config["wrinklefree"] = info.to_json()
        (partial / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        tokenizer.save_pretrained(partial)
        if model.can_generate():
            model.generation_config.save_pretrained(partial)
        save_file(_own_tensors(model, state), partial / WEIGHTS, metadata={"format": "pt"})
        partial.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        partial.replace(out)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise InputError(f"{out}: cannot be written ({error}); nothing was left there") from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _auto_class(config: Any) -> Any:
    return AutoModelForSequenceClassification if is_classifier(config) else AutoModelForCausalLM


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path}/config.json: cannot be read as JSON ({error})") from error
    if not isinstance(config, dict):
        raise FormatError(f"{path}/config.json: found {type(config).__name__}, an object is needed")
    return config


def _own_tensors(model: nn.Module, given: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """The state to write; a head tied to the embedding is stored once."""
    state = {name: tensor.detach().contiguous() for name, tensor in (given or model.state_dict()).items()}
    if getattr(model.config, "tie_word_embeddings", False):
        state.pop("lm_head.weight", None)
    # Not in the state_dict, because a curriculum adds and removes them while a run's states are written.
    kept = {f"{name}.kept_columns": layer.kept_columns for name, layer in bit_linears(model)}
    return state | {name: columns for name, columns in kept.items() if columns is not None}


def _add_factors(model: nn.Module, tensors: dict[str, torch.Tensor], place: str) -> None:
    """Give the layers low-rank factors of the ranks that the file's have."""
    suffix = ".low_rank_v"
    found = {name.removesuffix(suffix): tensor for name, tensor in tensors.items() if name.endswith(suffix)}
    try:
        add_factors(model, {name: tensor.shape[0] if tensor.ndim else 0 for name, tensor in found.items()})
    except InputError as error:
        raise FormatError(f"{place}: {error}") from error


def _load_exactly(model: nn.Module, tensors: dict[str, torch.Tensor], place: str) -> None:
    """Load with every name accounted for: what is dropped in silence is what ruined a resumed run before."""
    needed = _own_tensors(model)
    missing, surplus = sorted(needed.keys() - tensors.keys()), sorted(tensors.keys() - needed.keys())
    if missing or surplus:
        raise FormatError(f"{place}: missing tensors {missing[:3]}, unknown tensors {surplus[:3]}; the file is damaged")
    for name, tensor in tensors.items():
        if tensor.shape != needed[name].shape:
            found, wanted = tuple(tensor.shape), tuple(needed[name].shape)
            raise FormatError(f"{place}: {name} has shape {found}, config.json asks for {wanted}")
    model.load_state_dict(tensors, strict=False)
    for name, layer in bit_linears(model):
        if layer.kept_columns is not None:
            layer.kept_columns = tensors[f"{name}.kept_columns"]
    model.tie_weights()  # type: ignore[operator]


def _forget_gguf(model: PreTrainedModel) -> None:
    """A model read from GGUF is plain float; transformers refuses to save it until it forgets where it came from."""
    model.hf_quantizer = None  # type: ignore[assignment]
    model.is_quantized = False  # type: ignore[assignment]
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


@contextmanager
def _quiet_loading(place: str) -> Iterator[None]:
    """Turn what transformers raises over a missing or broken model into our errors; no progress bars of its own.

    Its bar over GGUF tensors cannot be switched off, so what it writes to standard error while it loads is dropped.
    """
    before = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        with redirect_stderr(StringIO()):
            yield
    except InputError:
        raise
    except SafetensorError as error:
        raise FormatError(f"{place}: the safetensors file is damaged ({error})") from error
    except ImportError as error:
        raise InputError(f"{place}: cannot be read without another package: {str(error).splitlines()[0]}") from error
    except (OSError, ValueError, KeyError, RuntimeError, IndexError, UnicodeDecodeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FormatError(f"{place}: cannot be loaded as a model ({first})") from error
    finally:
        if before:
            hf_logging.enable_progress_bar()
