"""The machines a user asked for: `--gpus H100:8 --nodes 2`."""

from __future__ import annotations

from dataclasses import dataclass

from wrinklefree.errors import InputError


@dataclass(frozen=True)
class Machines:
    """``count`` GPUs called ``gpu`` on each of ``nodes`` machines; ``gpu`` None is machines without.

    ``price``: dollars an hour for one GPU, or for one machine without; None is unknown. ``spot``: may be taken away.
    """

    gpu: str | None = None
    count: int = 0
    nodes: int = 1
    price: float | None = None
    spot: bool = False

    @property
    def processes(self) -> int:
        """Return how many processes train on them: one for each GPU, or one for each machine without."""
        return max(self.count, 1) * self.nodes

    @property
    def dollars_per_hour(self) -> float | None:
        """Return the price of all of them."""
        return None if self.price is None else self.price * self.processes


def machines(gpus: str | None, nodes: int, price: float | None, spot: bool) -> Machines:
    """Return what "H100:8" (or "H100") on each of ``nodes`` means; a price of None is taken from `train.gpus`.

    Raises: InputError for an unknown GPU, or a number that is none.
    """
    if nodes < 1:
        raise InputError(f"--nodes {nodes}: at least 1 is needed")
    if gpus is None:
        return Machines(nodes=nodes, price=price, spot=spot)
    from wrinklefree.train.gpus import gpu_named

    name, colon, number = gpus.partition(":")
    if colon and not (number.isascii() and number.isdigit() and 1 <= int(number) <= 64):
        raise InputError(f"--gpus {gpus}: give a GPU and how many for each machine, such as H100:8")
    gpu = gpu_named(name)
    known = gpu.dollars_per_hour if price is None else price
    return Machines(gpu.name, int(number or 1), nodes, known, spot)
