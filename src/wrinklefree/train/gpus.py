"""GPUs to plan for. Sizes and speeds are the makers' data sheets; prices are examples and grow old.

``memory_gib``: what a process can use, a little less than the name says. ``bf16_tflops``: dense, with tensor cores;
``fp32_tflops``: without them. ``dollars_per_hour``: one provider's public price for one GPU, None where none is noted.
"""

from __future__ import annotations

from dataclasses import dataclass

from wrinklefree.errors import unknown_name

# Where the prices are from: Modal's price list as reported in May 2026, RTX: RunPod's in March 2026. Indicative.
PRICES_AS_OF = "public list prices of spring 2026, indicative only"


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU; see the module for the units."""

    name: str
    memory_gib: float
    bf16_tflops: float
    fp32_tflops: float
    dollars_per_hour: float | None = None


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("L4", 22.0, 121.0, 30.3, 0.80),
        Gpu("A10G", 22.0, 70.0, 31.2),
        Gpu("RTX3090", 23.5, 71.0, 35.6, 0.39),
        Gpu("RTX4090", 23.5, 165.0, 82.6, 0.60),
        Gpu("A40", 44.4, 149.7, 37.4),
        Gpu("L40S", 44.4, 362.0, 91.6, 1.95),
        Gpu("A100-40GB", 39.4, 312.0, 19.5),
        Gpu("A100-80GB", 79.1, 312.0, 19.5, 2.50),
        Gpu("H100-PCIe", 79.1, 756.0, 51.2),
        Gpu("H100", 79.1, 989.0, 66.9, 3.95),
        Gpu("H200", 139.7, 989.0, 66.9),
        Gpu("B200", 178.0, 2250.0, 75.0),
    )
}


def gpu_named(name: str) -> Gpu:
    """Return the GPU of a name, whatever its case. Raises: InputError with the nearest match."""
    found = {known.lower(): gpu for known, gpu in GPUS.items()}.get(name.lower())
    if found is None:
        raise unknown_name("GPU", name, GPUS)
    return found
