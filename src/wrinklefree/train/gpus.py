"""GPUs to plan for. Sizes and speeds are the maker's data sheets; prices are examples and grow old.

``memory_gib``: what a process can use, a little less than the name says. ``bf16_tflops``: dense, with tensor cores and
sums in float32; ``fp32_tflops``: without them. ``dollars_per_hour``: ``seller``'s public price for one GPU, both None
where none is noted.

Sources. Sizes and speeds: NVIDIA's data sheets of each product (for L40S and H100 the dense half of what is printed
with sparsity), for RTX 5090 and RTX PRO 6000 the Blackwell architecture papers. Prices: Modal's price list (May 2026,
by the second), RunPod's for single GPUs (spring 2026), Lambda's (May 2026). The same A100-80GB was offered for 0.66 to
3.80 dollars an hour by five sellers at the end of 2025, so give your own price where it matters.
"""

from __future__ import annotations

from dataclasses import dataclass

from wrinklefree.errors import unknown_name

PRICES_AS_OF = "public list prices of spring 2026, indicative only"


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU; see the module for the units."""

    name: str
    memory_gib: float
    bf16_tflops: float
    fp32_tflops: float
    dollars_per_hour: float | None = None
    seller: str | None = None


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("L4", 22.0, 121.0, 30.3, 0.80, "Modal"),
        Gpu("A10G", 22.0, 70.0, 31.2, 1.10, "Modal"),
        Gpu("RTX3090", 23.5, 71.0, 35.6),
        Gpu("RTX4090", 23.5, 165.0, 82.6, 0.69, "RunPod"),
        Gpu("RTX5090", 31.3, 209.5, 104.8),
        Gpu("A40", 44.4, 149.7, 37.4),
        Gpu("L40S", 44.4, 362.0, 91.6, 1.95, "Modal"),
        Gpu("RTXPRO6000", 95.0, 503.8, 125.0, 3.03, "Modal"),
        Gpu("A100-40GB", 39.4, 312.0, 19.5, 2.10, "Modal"),
        Gpu("A100-80GB", 79.1, 312.0, 19.5, 2.50, "Modal"),
        Gpu("H100-PCIe", 79.1, 756.0, 51.2, 2.86, "Lambda"),
        Gpu("H100", 79.1, 989.0, 66.9, 3.95, "Modal"),
        Gpu("H200", 139.7, 989.0, 66.9, 4.54, "Modal"),
        Gpu("B200", 178.0, 2250.0, 75.0, 6.25, "Modal"),
        Gpu("B300", 267.0, 2250.0, 75.0),
    )
}


def gpu_named(name: str) -> Gpu:
    """Return the GPU of a name, whatever its case. Raises: InputError with the nearest match."""
    found = {known.lower(): gpu for known, gpu in GPUS.items()}.get(name.lower())
    if found is None:
        raise unknown_name("GPU", name, GPUS)
    return found
