"""One student in several processes: whole in each (DDP), or every parameter's rows divided among them (FSDP2).

`StudentModule` is what Fabric wraps in either case. With FSDP2 each decoder layer is gathered when it runs and
dropped afterwards; embedding, final norm and head belong to the whole, so that objectives may use the head's weight
anywhere inside `StudentModule`'s forward. Outside of it parameters are DTensors, of which each process has some rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from wrinklefree.errors import InputError
from wrinklefree.models.subln import decoder_layers
from wrinklefree.quant.bitlinear import BitLinear, bit_linears

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from wrinklefree.train.recipe import DeviceRecipe


class StudentModule(nn.Module):
    """Lets Fabric wrap student and objectives as one forward: its precision and its gradient hooks cover both."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[nn.Module], Tensor]) -> Tensor:
        return function(self.model)


class Group:
    """The processes of a run, as far as files and counters need them; without a ``fabric`` there is one.

    ``separate``: the processes are on machines that do not see each other's files.
    """

    def __init__(self, fabric: Fabric | None = None, separate: bool = False) -> None:
        self._fabric = fabric
        self.separate = separate
        self.rank = fabric.global_rank if fabric else 0
        self.size = fabric.world_size if fabric else 1
        self.first_here = not fabric or fabric.local_rank == 0

    @property
    def keeps_files(self) -> bool:
        """Whether this process looks after the run's files: the first one, or the first one of each machine."""
        return self.rank == 0 or (self.separate and self.first_here)

    def sum(self, value: Tensor) -> Tensor:
        """Return ``value`` summed over processes."""
        if self.size == 1 or self._fabric is None:
            return value
        # NCCL takes only what is on its device.
        total = self._fabric.all_reduce(value.to(self._fabric.device), reduce_op="sum")
        assert isinstance(total, Tensor)
        return total.to(value.device)

    def first(self, number: int) -> int:
        """Return the first process's ``number``."""
        return int(self.sum(torch.tensor(number if self.rank == 0 else 0, dtype=torch.int64)))

    def least(self, number: int) -> int:
        """Return the smallest ``number`` of all processes."""
        if self.size == 1 or self._fabric is None:
            return number
        value = torch.tensor(number, dtype=torch.int64, device=self._fabric.device)
        return int(self._fabric.all_reduce(value, reduce_op="min"))  # type: ignore[arg-type]

    def agree(self, ok: bool) -> bool:
        """Return whether ``ok`` holds in every process."""
        return int(self.sum(torch.tensor(int(ok), dtype=torch.int64))) == self.size


def build_fabric(device: DeviceRecipe) -> Fabric:
    """Return the Fabric of a recipe, not yet launched. ``auto`` is one plain process, or DDP over several.

    Raises: InputError when processes were started from outside (torchrun), and not as many as the recipe says.
    """
    from lightning.fabric import Fabric

    _check_started(device)
    strategy: Any = "auto"
    if device.processes > 1 and device.strategy == "fsdp":
        from lightning.fabric.strategies import ModelParallelStrategy

        strategy = ModelParallelStrategy(_shard, data_parallel_size=device.processes, tensor_parallel_size=1)
    elif device.processes > 1:
        strategy = "ddp"
    return Fabric(
        accelerator=device.accelerator,
        devices=device.devices,
        num_nodes=device.nodes,
        strategy=strategy,
        precision=device.precision,
    )


def _check_started(device: DeviceRecipe) -> None:
    """Raise InputError for what would wait for ever, or train alone: another number of processes than the recipe's."""
    started = int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else None
    if started is not None and started != device.processes:
        raise InputError(
            f"device: torchrun started {started} processes, but device.devices={device.devices} on each of "
            f"device.nodes={device.nodes} machines are {device.processes}; make --nproc-per-node and --nnodes the same"
        )
    if started is None and device.nodes > 1 and not {"NODE_RANK", "GROUP_RANK", "SLURM_JOB_ID"} & os.environ.keys():
        raise InputError(
            f"device.nodes={device.nodes}: start the same command on every machine, with torchrun --no-python "
            f"--nnodes {device.nodes} --nproc-per-node {device.devices} --node-rank N --master-addr ADDRESS "
            "--master-port PORT wf train ..."
        )


# Up to this many tokens, PyTorch's fused attention in bfloat16 is slower on a CPU than plain products: forward and
# backward of 16 rows of 40 tokens took 28.6 ms fused and 7.5 ms plain, 8 of 128 took 31.8 and 21.1, 4 of 256 took 25.8
# and 44.0 (9 heads of 64, one core with AMX, torch 2.13). In float32 the fused one is never slower. The plain form
# keeps every score for the backward pass, so it is left to rows that are short enough for that not to matter.
_PLAIN_ATTENTION = 64


def attention_kernel(fabric: Fabric, precision: str, length: int) -> AbstractContextManager[Any]:
    """Return what to train in, so that attention over rows of ``length`` tokens takes the faster of its forms."""
    if fabric.device.type != "cpu" or precision != "bf16-mixed" or length > _PLAIN_ATTENTION:
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.MATH)


def wrap(student: nn.Module, fabric: Fabric) -> nn.Module:
    """Return ``student`` as Fabric runs it. Its parameters may be replaced: build the optimizer afterwards.

    Raises: InputError when the student cannot be sharded.
    """
    return fabric.setup_module(StudentModule(student))


def _shard(module: nn.Module, mesh: Any) -> nn.Module:
    """Divide a `StudentModule` among the processes of ``mesh``, decoder layer by decoder layer."""
    from torch.distributed.fsdp import fully_shard

    assert isinstance(module, StudentModule)
    dtypes = {p.dtype: name for name, p in module.model.named_parameters() if p.requires_grad}
    if len(dtypes) > 1:
        found = ", ".join(f"{dtype} ({name})" for dtype, name in dtypes.items())
        raise InputError(
            f"device.strategy=fsdp: the trainable parameters have several dtypes, {found}; sharding needs one. Use "
            "model.dtype=float32 with device.precision=bf16-mixed"
        )
    data = mesh["data_parallel"]
    for layer in decoder_layers(module.model):
        fully_shard(layer, mesh=data)
    fully_shard(module, mesh=data, reshard_after_forward=False)
    return module


# Whose step and whose hooks were tried on rows alone.
_SHARDED_OPTIMIZERS = ("adamw",)


def check_sharded(student: nn.Module, optimizer: str, companions: Sequence[object]) -> None:
    """Refuse what would compute with a part of the rows as if they were all.

    A companion that works on a sharded student says so by an attribute ``sharded`` that is true.

    Raises: InputError when the student is sharded and the optimizer or a companion needs whole parameters.
    """
    if not is_sharded(student):
        return
    if optimizer not in _SHARDED_OPTIMIZERS:
        raise InputError(
            f"optimizer.kind={optimizer}: needs whole matrices, which device.strategy=fsdp divides; use "
            f"{' or '.join(_SHARDED_OPTIMIZERS)}, or device.strategy=ddp"
        )
    for companion in companions:
        if not getattr(companion, "sharded", False):
            name = getattr(companion, "name", type(companion).__name__)
            raise InputError(f"{name}: needs whole parameters, which device.strategy=fsdp divides; use ddp")


def is_sharded(model: nn.Module) -> bool:
    """Return whether the parameters of ``model`` are divided among processes."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """Return all rows of a tensor that may be sharded; every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of ``model`` with every tensor whole, on the CPU; every process must call it."""
    return {name: whole(tensor.detach()).cpu() for name, tensor in model.state_dict().items()}


def whole_bit_linears(model: nn.Module) -> Iterator[tuple[str, BitLinear]]:
    """Yield every `BitLinear` with its rows whole while the caller looks at it; every process must iterate."""
    from torch.distributed.fsdp import FSDPModule

    blocks = [(name, block) for name, block in model.named_modules() if isinstance(block, FSDPModule)]
    if not blocks:
        yield from bit_linears(model)
    for prefix, block in blocks:
        block.unshard()
        yield from ((f"{prefix}.{name}", layer) for name, layer in bit_linears(block))  # type: ignore[arg-type]
        block.reshard()
