"""Whether a task's data are on this machine, and what to say when they are not: before anything is loaded.

Without a network the hub's client tries six times, 25 seconds for each data set; here one question decides.
"""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wrinklefree.errors import InputError

# Readers of files; their data are named in data_files.
FILE_READERS = ("json", "csv", "parquet", "arrow", "text", "xml", "imagefolder", "audiofolder", "webdataset")
_PROBE_SECONDS = 5.0
_YES = {"1", "ON", "YES", "TRUE"}


@dataclass(frozen=True)
class Needed:
    """A task's data set on the hub, ``name`` None where it has one configuration only."""

    task: str
    path: str
    name: str | None

    def __str__(self) -> str:
        return f"{self.task} ({self.path}{f' {self.name}' if self.name else ''})"


def needed(config: Mapping[str, Any]) -> Needed | None:
    """Return the data set that a task reads from the hub, None when it brings its own data or reads local files.

    Raises: InputError when a local file that it names is not there.
    """
    path = config.get("dataset_path")
    task = str(config.get("task"))
    if config.get("custom_dataset") is not None or not path:
        return None
    if path in FILE_READERS:
        for file in _local_files((config.get("dataset_kwargs") or {}).get("data_files")):
            if not any(
                Path().glob(file) if not Path(file).is_absolute() else [Path(file)] if Path(file).exists() else []
            ):
                raise InputError(f"task {task}: data_files: {file}: no such file")
        return None
    return None if Path(path).is_dir() else Needed(task, path, config.get("dataset_name"))


def is_offline() -> bool:
    """Return whether the environment says that the hub is not to be asked."""
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if name in os.environ:
            return os.environ[name].upper() in _YES
    return False


def is_prepared(data: Needed) -> bool:
    """Return whether the `datasets` package has prepared this data set here before, and so reads it without a network.

    Source: the layout of its cache, OWNER___NAME/CONFIGURATION/VERSION/HASH (datasets 5, load.py).
    """
    *owner, name = data.path.split("/")
    folder = "___".join([*owner, _snake(name)])
    configurations = [data.name] if data.name else ["*"]
    return any(
        found.is_dir() for each in configurations for found in (_cache() / folder).glob(f"{each}/*/*")
    )  # fmt: skip


def check(wanted: Sequence[Needed]) -> bool:
    """Return whether to load data sets without asking the hub: it is not to be asked, or nobody answers.

    Raises: InputError naming every task whose data cannot be had so.
    """
    missing = [data for data in wanted if not is_prepared(data)]
    if not wanted or (not is_offline() and is_reachable()):
        return False
    if not missing:
        return True
    why = "the environment says offline (HF_HUB_OFFLINE)" if is_offline() else f"{_endpoint()} does not answer"
    raise InputError(
        f"tasks: the data of {', '.join(map(str, missing))} are not on this machine, and {why}; run the same command "
        f"once with a network, or copy {_cache()} from a machine where it ran; --tasks offline needs no data, "
        "--tasks FILE.yaml reads data of your own"
    )


@contextmanager
def asking_nobody(really: bool) -> Iterator[None]:
    """While the block runs, let the hub's client answer from this machine alone (when ``really``)."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or really
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def is_reachable() -> bool:
    """Return whether the hub answers at all; proxies of the environment are used."""
    try:
        with urllib.request.urlopen(urllib.request.Request(_endpoint(), method="HEAD"), timeout=_PROBE_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True  # an answer
    except (OSError, ValueError):
        return False


def _local_files(found: Any) -> Iterator[str]:
    if isinstance(found, str):
        if "://" not in found:
            yield found
    elif isinstance(found, Mapping):
        for value in found.values():
            yield from _local_files(value)
    elif isinstance(found, Sequence):
        for value in found:
            yield from _local_files(value)


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _cache() -> Path:
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_DATASETS_CACHE") or Path(home) / "datasets").expanduser()


def _snake(name: str) -> str:
    """Return a name as the `datasets` package writes it: words of capitals parted by underscores."""
    parted = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)
    return re.sub(r"([a-z\d])([A-Z])", r"\1_\2", parted).lower()
