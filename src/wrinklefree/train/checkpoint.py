"""The training state on disk: everything a resumed run needs to be the uninterrupted one, bit for bit.

    state/step-00000010/tensors.safetensors   every tensor: weights, optimizer, random generators
                        state.json            the tree around them: schedules' positions, counters, tensor references
                        manifest.json         SHA-256 of all others, and the format version

Of a sharded student each process writes its own rows, ``tensors-00001-of-00002.safetensors`` and so on; the first
process also writes what is not sharded. Any number of processes can read it. On machines that do not share a file
system each has its own processes' files, and `train.remote` brings them together.

A state is written under a name that begins with a dot and renamed, so it is whole or absent. No pickle is written or
read, which is why torch's own format for distributed checkpoints is not used: its index is one.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from wrinklefree.artifact.files import json_bytes, read_json, sha256, space_errors, write_bytes
from wrinklefree.errors import FormatError, InputError
from wrinklefree.train.parallel import Group

FORMAT_VERSION = 2  # 1 had no sharded tensors
_READS = (1, 2)
MANIFEST = "manifest.json"
_TENSORS, _TREE = "tensors.safetensors", "state.json"
PREFIX = "step-"


@dataclass(frozen=True)
class Stored:
    """A tensor in the files of a state: its rows lie one after another in ``files``."""

    name: str
    files: tuple[Path, ...]

    def read(self) -> Tensor:
        """Return the whole tensor, in memory of its own: what safetensors returns is a view of the file."""
        rows = [self._rows(file) for file in self.files]
        return torch.cat(rows) if len(rows) > 1 else rows[0].clone()

    def like(self, parameter: Tensor) -> Tensor:
        """Return the tensor divided among processes as ``parameter`` is; only this process's rows are read."""
        if not isinstance(parameter, DTensor) or parameter.placements != (Shard(0),):
            return self.read()
        rank, size = parameter.device_mesh.get_local_rank(), parameter.device_mesh.size()
        per_process = -(-parameter.shape[0] // size)
        first = min(rank * per_process, parameter.shape[0])
        local = self._between(first, min(first + per_process, parameter.shape[0])).to(parameter.device)
        return DTensor.from_local(
            local, parameter.device_mesh, parameter.placements, run_check=False,
            shape=parameter.shape, stride=parameter.stride(),
        )  # fmt: skip

    def shape(self) -> tuple[int, ...]:
        """Return the shape of the whole tensor."""
        shapes = [self._slice(file).get_shape() for file in self.files]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:]) if shapes[0] else ()

    def _between(self, first: int, last: int) -> Tensor:
        pieces, start = [], 0
        for file in self.files:
            part = self._slice(file)
            rows = part.get_shape()[0]
            inside = slice(max(first - start, 0), max(min(last - start, rows), 0))
            pieces.append(part[inside.start : max(inside.stop, inside.start)] if rows > inside.start else part[0:0])
            start += rows
        return torch.cat(pieces)

    def _slice(self, file: Path) -> Any:
        return safe_open(file, framework="pt").get_slice(self.name)

    def _rows(self, file: Path) -> Tensor:
        with safe_open(file, framework="pt") as stored:
            tensor: Tensor = stored.get_tensor(self.name)
            return tensor


def save_state(
    directory: Path, step: int, state: Mapping[str, Any], keep_last: int = 2, group: Group | None = None
) -> Path:
    """Write ``state`` (nested dicts, lists, numbers, strings, tensors) and keep the newest ``keep_last``; return where.

    Every process of ``group`` must call it.

    Raises: InputError in all processes when one has no space or permission; nothing is left then.
    """
    group = group or Group()
    out = directory / f"{PREFIX}{step:08d}"
    partial = directory / f".{out.name}.partial"
    written: dict[str, str] = {}
    try:
        _together(group, out, lambda: _start(partial) if group.keeps_files else None)
        _together(group, out, lambda: written.update(_write_own(partial, state, group)))
        hashes = _all_hashes(written, group)
        _together(group, out, lambda: _complete(partial, out, hashes, group) if group.keeps_files else None)
    except BaseException:
        if group.keeps_files:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    if group.keeps_files:
        for old in states(directory)[:-keep_last]:
            shutil.rmtree(old, ignore_errors=True)
    return out


def load_state(path: Path, lazy: bool = False, check: bool = True) -> dict[str, Any]:
    """Return the state in one ``step-*`` directory, tensors on the CPU; ``lazy`` leaves them as `Stored`.

    Raises: FormatError when it is damaged or of another format version.
    """
    if check:
        check_state(path)
    names = sorted(name for name in read_json(path / MANIFEST)["sha256"] if name.startswith("tensors"))
    files = tuple(path / name for name in names)

    def tensor(name: str, shards: int) -> Tensor | Stored:
        stored = Stored(name, files[:shards])
        return stored if lazy else stored.read()

    try:
        state = _unflatten(read_json(path / _TREE), tensor)
    except (SafetensorError, KeyError, IndexError, TypeError, ValueError) as error:
        raise FormatError(f"{path}: cannot be read ({error}); the state is damaged") from error
    assert isinstance(state, dict)
    return state


def read_all(tree: Any) -> Any:
    """Return ``tree`` with every `Stored` read."""
    if isinstance(tree, Stored):
        return tree.read()
    if isinstance(tree, dict):
        return {key: read_all(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(read_all(value) for value in tree)
    return tree


def check_state(path: Path) -> None:
    """Read every file of a state and compare it with the manifest. Raises: FormatError when it is damaged."""
    manifest = read_json(path / MANIFEST)
    if manifest.get("format_version") not in _READS:
        found = manifest.get("format_version")
        raise FormatError(f"{path}: format_version {found!r}, this release reads {FORMAT_VERSION}")
    hashes = manifest.get("sha256")
    if not isinstance(hashes, dict) or _TREE not in hashes or len(hashes) < 2:
        raise FormatError(f"{path}/{MANIFEST}: does not name the files of a state; the state is damaged")
    for name, expected in hashes.items():
        if "/" in name or not (path / name).is_file() or expected != sha256(path / name):
            raise FormatError(f"{path}/{name}: is not what the manifest says it was; the state is damaged")


def newest(directory: Path, say: Callable[[str], None], below: int | None = None) -> Path | None:
    """Return the newest state that is whole, or None when there is none; ``say`` hears of each damaged one.

    ``below``: only of states after fewer steps.
    """
    for path in reversed(states(directory)):
        if below is not None and step_of(path) >= below:
            continue
        try:
            check_state(path)
            return path
        except FormatError as error:
            say(f"WARNING: {error}; going back to the state before it")
    return None


def load_newest(directory: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """Return the content of the `newest` state, or None."""
    path = newest(directory, say)
    return None if path is None else load_state(path, check=False)


def peek(directory: Path, key: str) -> Any:
    """Return one value of the newest state without reading its tensors, None when there is none to read."""
    for path in reversed(states(directory)):
        try:
            return read_all(load_state(path, lazy=True, check=False).get(key))
        except (FormatError, OSError, KeyError):
            continue  # `newest` tells of it
    return None


def states(directory: Path) -> list[Path]:
    """Return the states in ``directory``, the oldest first; damaged ones too."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if path.name.startswith(PREFIX) and path.is_dir())


def step_of(state: Path) -> int:
    """Return the step after which a state was saved."""
    return int(state.name.removeprefix(PREFIX))


def random_state() -> dict[str, Any]:
    """Return the state of torch's generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": list(cuda)}


def set_random_state(state: Mapping[str, Any]) -> None:
    """Take back what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def _together(group: Group, out: Path, action: Callable[[], None]) -> None:
    """Do ``action`` in every process; when one fails, all raise, so that none waits for the others for ever."""
    problem: InputError | None = None
    other: BaseException | None = None
    try:
        with space_errors(out):
            action()
    except InputError as error:
        problem = error
    except (SafetensorError, OSError) as error:
        problem = InputError(f"{out}: cannot be written ({error}); nothing was left there")
    except BaseException as error:
        other = error
    agreed = group.agree(problem is None and other is None)
    if other is not None:
        raise other
    if problem is not None:
        raise problem
    if not agreed:
        raise InputError(f"{out}: another process could not write its part; nothing was left there")


def _start(partial: Path) -> None:
    """Make the directory; what a killed run left half written goes away."""
    partial.parent.mkdir(parents=True, exist_ok=True)
    for left in partial.parent.glob(f".{PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir()


def _write_own(partial: Path, state: Mapping[str, Any], group: Group) -> dict[str, str]:
    """Write this process's files and return their SHA-256; the first process writes the tree too."""
    tensors: dict[str, Tensor] = {}
    sharded: set[str] = set()
    tree = _flatten(dict(state), "", tensors, {}, sharded, group.size)
    if group.rank:
        tensors = {name: tensor for name, tensor in tensors.items() if name in sharded}
        if not tensors:
            return {}
    name = _part(group.rank, group.size) if sharded else _TENSORS
    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, partial / name)
    hashes = {name: sha256(partial / name)}
    if group.rank == 0:
        write_bytes(partial / _TREE, json_bytes(tree))
        hashes[_TREE] = sha256(partial / _TREE)
    return hashes


def _part(rank: int, size: int) -> str:
    return f"tensors-{rank + 1:05d}-of-{size:05d}.safetensors"


def _all_hashes(own: Mapping[str, str], group: Group) -> dict[str, str]:
    """Return the SHA-256 of every process's files: the first process's plain ones, and each one's part."""
    names = [_TREE, _TENSORS, *(_part(rank, group.size) for rank in range(group.size))]
    rows = [list(bytes.fromhex(own.get(name, "00" * 32))) for name in names]  # one process has each
    whole = group.sum(torch.tensor(rows, dtype=torch.int64)).tolist()
    return {name: bytes(row).hex() for name, row in zip(names, whole, strict=True) if any(row)}


def _complete(partial: Path, out: Path, hashes: Mapping[str, str], group: Group) -> None:
    missing = [name for name in hashes if not (partial / name).is_file()]
    if missing and not group.separate:
        raise InputError(f"{out}: {missing[0]} is not there; the processes must share a file system")
    write_bytes(partial / MANIFEST, json_bytes({"format_version": FORMAT_VERSION, "sha256": hashes}))
    if out.exists():
        shutil.rmtree(out)
    partial.rename(out)


def _flatten(
    value: Any, name: str, tensors: dict[str, Tensor], names: dict[Any, str], sharded: set[str], size: int
) -> Any:
    """Return ``value`` as JSON, tensors moved to ``tensors`` and referred to by name (tied ones once)."""

    def inner(child: Any, key: Any) -> Any:
        return _flatten(child, f"{name}.{key}".strip("."), tensors, names, sharded, size)

    if isinstance(value, Tensor):
        return _refer(value, name, tensors, names, sharded, size)
    if isinstance(value, Mapping):
        # Pairs, because an optimizer's state has integer keys, which JSON objects lose.
        return {"dict": [[k, inner(v, k)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [inner(v, i) for i, v in enumerate(value)]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return {"is": value}
    raise TypeError(f"training state {name}: {type(value).__name__} cannot be stored")


def _refer(
    value: Tensor, name: str, tensors: dict[str, Tensor], names: dict[Any, str], sharded: set[str], size: int
) -> dict[str, Any]:
    local = value.to_local() if isinstance(value, DTensor) else value
    key = (local.data_ptr(), tuple(value.shape), value.stride(), value.dtype, value.device)
    if local.numel() == 0 or key not in names:
        names[key] = name
        tensors[name] = local
        if isinstance(value, DTensor):
            if value.placements != (Shard(0),):
                raise TypeError(f"training state {name}: is placed {value.placements}, only rows can be stored")
            sharded.add(name)
    known = names[key]
    return {"shards": [known, size]} if known in sharded else {"tensor": known}


def _unflatten(node: Mapping[str, Any], tensor: Callable[[str, int], Any]) -> Any:
    ((kind, value),) = node.items()
    if kind == "tensor":
        return tensor(value, 1)
    if kind == "shards":
        return tensor(value[0], value[1])
    if kind == "dict":
        return {k: _unflatten(v, tensor) for k, v in value}
    if kind == "list":
        return [_unflatten(v, tensor) for v in value]
    if kind == "tuple":
        return tuple(_unflatten(v, tensor) for v in value)
    if kind == "float":
        return float(value)
    return value
