"""From the words of `wf train` to the same run on other machines: files to send, processes, the batch, the estimate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wrinklefree.cloud.cost import Estimate
from wrinklefree.cloud.job import INPUTS, Input
from wrinklefree.cloud.machines import Machines
from wrinklefree.errors import InputError
from wrinklefree.train.compose import compose, list_recipes
from wrinklefree.train.gpus import PRICES_AS_OF, gpu_named
from wrinklefree.train.plan import plan
from wrinklefree.train.recipe import Recipe

# What these name is not on this machine, or not to be sent.
_STAYS = ("out", "sync.url", "data.cache_dir", "teacher.cache_dir")
_BATCH = ("batch.micro_batch", "batch.accumulation", "batch.find")
_DEVICES = ("device.devices", "device.nodes")
# The system, torch with its CUDA libraries, downloads of model and data.
_PACKAGES_GB = 60
# fsspec finds the others itself.
_FILE_SYSTEMS = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


@dataclass(frozen=True)
class TrainingRun:
    """``words``: of `wf train` on the machine; ``needed``: variable -> why; ``welcome``: handed on if there.

    ``disk_gb``: what the run takes on each machine, as far as it was planned.
    """

    words: tuple[str, ...]
    inputs: tuple[Input, ...]
    recipe: Recipe
    needed: dict[str, str]
    welcome: tuple[str, ...]
    requirements: tuple[str, ...]
    estimate: Estimate
    disk_gb: int


def training_run(
    overrides: Sequence[str], machines: Machines, bucket: str | None, hours: float | None, utilisation: float
) -> TrainingRun:
    """Return the run of ``overrides`` on ``machines``, with as many sequences in a step as the recipe says.

    ``bucket``: where states are copied, any URL of `sync.url`. ``hours``: instead of our estimate of the time.

    Raises: InputError for a wrong recipe, one whose step cannot be divided among the processes or does not fit, and for
    a run of which nothing would be left.
    """
    keys = [word.partition("=")[0].lstrip("+") for word in overrides]
    if given := [key for key in _DEVICES if key in keys]:
        raise InputError(f"{given[0]}: follows from --gpus and --nodes; remove it")
    if "out" in keys:
        raise InputError("out: a machine's own directory is taken; the results are in the bucket (--bucket URL)")
    words = list(overrides)
    if bucket is not None:
        if "sync.url" in keys:
            raise InputError("--bucket and sync.url say the same; give one")
        words += [f"sync.url={bucket}", *([] if "sync.mode" in keys else ["sync.mode=required"])]
    recipe = compose(words)
    _check_states(recipe, machines)
    divided, recipe = _divided(recipe, machines, set(keys) & set(_BATCH), offline=hours is not None)
    estimate, disk_bytes = _estimate(recipe, machines, hours, utilisation)
    words += divided
    here = [_sent(word) for word in words]
    return TrainingRun(
        words=tuple(word for word, _ in here),
        inputs=tuple(each for _, each in here if each is not None),
        recipe=recipe,
        needed={"WANDB_API_KEY": "log.tracker=wandb"} if recipe.log.tracker == "wandb" else {},
        welcome=(recipe.teacher.key_variable,) if recipe.taught and recipe.teacher.kind == "remote" else (),
        requirements=_requirements(recipe),
        estimate=estimate,
        disk_gb=_PACKAGES_GB + math.ceil(disk_bytes / 1e9),
    )


def _check_states(recipe: Recipe, machines: Machines) -> None:
    if recipe.sync.url is None:
        raise InputError(
            "--bucket: none given; machines are given back when the run ends or is interrupted, and what is on them is "
            "gone. Give a URL for states and results (s3://, gs://, any that fsspec knows)"
        )
    if recipe.sync.url.startswith(("file:", "/")) and machines.spot:
        raise InputError(f"sync.url={recipe.sync.url}: is on the machine that --spot lets be taken away; give a bucket")
    if machines.spot and recipe.checkpoint.save_every is None:
        raise InputError("--spot: this recipe saves no state on its way; give checkpoint.save_every=STEPS")


def _divided(recipe: Recipe, machines: Machines, batch_given: set[str], offline: bool) -> tuple[list[str], Recipe]:
    """Return overrides, and the recipe with them: the processes, and a step of as many sequences as before.

    ``offline``: what fits is only asked for a model whose configuration is here.
    """
    words = [f"device.devices={max(machines.count, 1)}", f"device.nodes={machines.nodes}"]
    if machines.gpu is not None:
        words.append("device.accelerator=cuda")
    device = replace(
        recipe.device,
        devices=max(machines.count, 1),
        nodes=machines.nodes,
        accelerator="cuda" if machines.gpu else recipe.device.accelerator,
    )
    if batch_given:
        return words, replace(recipe, device=device)
    sequences = recipe.batch.micro_batch * recipe.batch.accumulation
    if sequences % machines.processes:
        raise InputError(
            f"batch: a step of {sequences} sequences cannot be divided among {machines.processes} processes; give "
            "batch.micro_batch and batch.accumulation, each for one process"
        )
    own = sequences // machines.processes
    largest = recipe.batch.micro_batch
    whole = replace(recipe, device=device, batch=replace(recipe.batch, micro_batch=own, accumulation=1))
    source = recipe.model.source
    if machines.gpu is not None and source and not (offline and not Path(source, "config.json").is_file()):
        found = plan(whole, [gpu_named(machines.gpu)]).gpus[0]
        if found.micro_batch is None:
            raise InputError(
                f"--gpus {machines.gpu}: not even one sequence fits, {found.memory_gib:.1f} of "
                f"{found.gpu.memory_gib:.0f} GiB; take a larger GPU, "
                "device.strategy=fsdp on several, or device.gradient_checkpointing=true"
            )
        largest = found.micro_batch
    micro = max(size for size in range(1, min(own, largest) + 1) if own % size == 0)
    batch = replace(recipe.batch, micro_batch=micro, accumulation=own // micro)
    words += [f"batch.micro_batch={micro}", f"batch.accumulation={own // micro}"]
    return words, replace(recipe, device=device, batch=batch)


def _estimate(recipe: Recipe, machines: Machines, hours: float | None, utilisation: float) -> tuple[Estimate, float]:
    """Return time and price, and the bytes that the run leaves on disk; 0 when nothing was planned."""
    price = machines.dollars_per_hour
    prices = f"prices: {PRICES_AS_OF}"
    if hours is not None:
        return Estimate(hours * 3600.0, price, f"hours given; {prices}"), 0.0
    if machines.gpu is None:
        return Estimate(recipe.budget.max_seconds, price, "a CPU's speed is not estimated; give --hours"), 0.0
    if not recipe.model.source:
        raise InputError("model: none given; name a model (model=NAME or model=PATH)")
    planned = plan(recipe, [gpu_named(machines.gpu)], utilisation)
    basis = f"an assumed {utilisation:.0%} of the GPU's peak; {prices}"
    return Estimate(planned.gpus[0].seconds, price, basis), sum(planned.disk.values())


def _sent(word: str) -> tuple[str, Input | None]:
    """Return a word as the machine is given it, and what is sent for it: a value that is a file here goes along."""
    key, equals, value = word.partition("=")
    path = Path(value).expanduser()
    named = key in ("model", "data") and value not in {each.name for each in list_recipes() if each.group == key}
    named = named or "/" in value or value.startswith("~")
    if not equals or not value or key.lstrip("+") in _STAYS or not named or not path.exists():
        return word, None
    # Two inputs may have the same name: the key is unique.
    place = f"{INPUTS}{key.lstrip('+').replace('.', '-')}/{path.resolve().name}"
    return f"{key}={place}", Input(str(path.resolve()), place)


def _requirements(recipe: Recipe) -> tuple[str, ...]:
    scheme = (recipe.sync.url or "").partition("://")[0]
    found = [_FILE_SYSTEMS[scheme]] if scheme in _FILE_SYSTEMS else []
    return (*found, *({"wandb": ["wandb"], "tensorboard": ["tensorboard"]}.get(recipe.log.tracker, [])))
