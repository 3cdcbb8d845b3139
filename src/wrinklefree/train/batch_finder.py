"""The largest micro-batch that fits into memory, for a step whose number of sequences stays what the recipe says.

Only divisors of a process's sequences in a step are tried, so that accumulation makes up for the rest exactly: first
rising, each at least twice the one before, then the ones between the last that fits and the first that does not. On a
CPU nothing may fail for lack of memory, because Linux would kill the process: a size is tried only when the two before
it, extended in a straight line, say that it fits.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from wrinklefree.errors import InputError
from wrinklefree.train.probe import Probe

_GIB = 2.0**30
# Of what is free now, for a process that was given no bound: others live on the machine too.
_SHARE = 0.8
# Adam's two moments; optimizers with less leave a little room unused.
_MOMENTS = 2


@dataclass(frozen=True)
class Found:
    """``peak`` and ``limit`` in bytes; the optimizer's state is counted in ``peak``."""

    micro_batch: int
    accumulation: int
    peak: int
    limit: int

    def line(self) -> str:
        """Return what the user is told."""
        return (
            f"batch.find: micro_batch {self.micro_batch} x accumulation {self.accumulation} takes "
            f"{self.peak / _GIB:.2f} of {self.limit / _GIB:.2f} GiB; the tokens of an optimizer step stay as they are"
        )


def find_batch(probe: Probe, sequences: int, memory_gib: float | None, processes: int = 1) -> Found:
    """Return how a process divides the ``sequences`` of its part of a step.

    ``memory_gib``: for this process, all in all. None takes most of what is free, shared by ``processes``.

    Raises: InputError when a single sequence does not fit, or memory cannot be measured.
    """
    meter: _CpuMeter | _CudaMeter = _CudaMeter(probe.device) if probe.device.type == "cuda" else _CpuMeter()
    limit = int(memory_gib * _GIB) if memory_gib else meter.free(processes)
    extra = _MOMENTS * sum(p.numel() * p.element_size() for p in probe.student.parameters() if p.requires_grad)
    peaks: dict[int, int] = {}

    def fits(size: int) -> bool:
        if _expected(peaks, size) > limit:
            return False
        peak = meter.peak_of(lambda: probe.run(size))
        if peak is None:
            return False
        peaks[size] = peak + extra
        return peaks[size] <= limit

    best = search(fits, sequences)
    if best is None:
        needed = f"{peaks[1] / _GIB:.2f} GiB" if peaks else "more than there is"
        raise InputError(
            f"batch.find: a micro-batch of one sequence takes {needed}, the limit is {limit / _GIB:.2f} GiB; shorten "
            "data.sequence_length, set device.gradient_checkpointing=true, or raise batch.memory_gib"
        )
    return Found(best, sequences // best, peaks[best], limit)


def search(fits: Callable[[int], bool], sequences: int) -> int | None:
    """Return the largest divisor of ``sequences`` that fits, or None; whatever is smaller than one that fits, fits."""
    sizes = [size for size in range(1, sequences + 1) if sequences % size == 0]
    good, bad, at = -1, len(sizes), 0
    while at < bad:
        if not fits(sizes[at]):
            bad = at
            break
        good = at
        at = next((i for i in range(at + 1, len(sizes)) if sizes[i] >= 2 * sizes[good]), len(sizes) - 1)
        if at == good:
            break
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(sizes[middle]) else (good, middle)
    return sizes[good] if good >= 0 else None


def _expected(peaks: dict[int, int], size: int) -> float:
    """A straight line through the two largest sizes measured so far; the least that is known, before there are two."""
    known = sorted(peaks)
    if len(known) < 2:
        return max(peaks.values(), default=0)
    a, b = known[-2:]
    return peaks[b] + (peaks[b] - peaks[a]) / (b - a) * (size - b)


class _CpuMeter:
    """The resident memory of this process, whose peak Linux keeps and lets us reset."""

    def __init__(self) -> None:
        try:
            self._reset()
        except OSError as error:
            raise InputError(
                "batch.find: this system does not tell the peak of a process's memory (/proc/self/clear_refs); set "
                "batch.micro_batch yourself"
            ) from error

    def free(self, processes: int) -> int:
        """Return what this process may grow to, without a bound of the user's."""
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
        for name in ("memory.max", "memory/memory.limit_in_bytes"):
            limit = Path("/sys/fs/cgroup") / name
            if limit.is_file() and limit.read_text().strip().isdigit():
                available = min(available, int(limit.read_text()))
        return int(_SHARE * available / processes) + self._status("VmRSS")

    def peak_of(self, action: Callable[[], None]) -> int | None:
        """Return the bytes resident at the height of ``action``."""
        self._reset()
        action()
        return self._status("VmHWM")

    def _reset(self) -> None:
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)  # what an earlier, larger try freed would count for this one
        Path("/proc/self/clear_refs").write_text("5")

    def _status(self, name: str) -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise InputError(f"batch.find: /proc/self/status has no {name}; set batch.micro_batch yourself")


class _CudaMeter:
    """What torch has allocated on the device; too much is an error that can be caught."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def free(self, processes: int) -> int:
        """Return what torch may allocate."""
        free, _ = torch.cuda.mem_get_info(self._device)
        return int(0.95 * (free + torch.cuda.memory_reserved(self._device)))

    def peak_of(self, action: Callable[[], None]) -> int | None:
        """Return the bytes allocated at the height of ``action``, None when there were not enough."""
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        try:
            action()
        except torch.OutOfMemoryError:
            return None
        return torch.cuda.max_memory_allocated(self._device)
