"""What quantisation-aware training costs: one step (forward and backward) of ternary layers over that of nn.Linear.

    python benchmarks/qat_overhead.py [--tokens 1024] [--accumulation 1 4] [--threads 1] [--json FILE]

The shapes are those of a decoder layer of SmolLM2-135M. ``linears`` runs its seven linear layers alone, with the inputs
that they share in the model; ``layer`` the whole decoder layer. A step has ``--accumulation`` micro-batches, which
share one set of weights. All candidates take turns in one process; figures are medians, ratios are those of medians.
Freed memory is kept, as `wf train` keeps it, for all of them. ``--clock cpu`` counts the time of this process's threads
only, for a machine that others use, too.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wrinklefree.quant.bitlinear import BitLinear, QuantStrength, held_codes
from wrinklefree.quant.products import Products, set_products
from wrinklefree.quant.ternary import TernarySpec
from wrinklefree.train.memory import keep_freed_memory

HIDDEN, HEADS, KEYS, WIDTH = 576, 9, 3, 1536
HEAD = HIDDEN // HEADS
# name -> (input it reads, input features, output features)
LINEARS = {
    "q_proj": ("attention", HIDDEN, HIDDEN),
    "k_proj": ("attention", HIDDEN, KEYS * HEAD),
    "v_proj": ("attention", HIDDEN, KEYS * HEAD),
    "o_proj": ("heads", HIDDEN, HIDDEN),
    "gate_proj": ("mlp", HIDDEN, WIDTH),
    "up_proj": ("mlp", HIDDEN, WIDTH),
    "down_proj": ("product", WIDTH, HIDDEN),
}
Replace = Callable[[nn.Linear], nn.Module]


@dataclass(frozen=True)
class Candidate:
    """``replace`` makes the layer from an ``nn.Linear``; ``held``: our layers, whose codes a step's forwards share."""

    name: str
    replace: Replace
    held: bool = False
    products: str | None = None


def ours(spec: TernarySpec, learned: bool) -> Replace:
    strength = QuantStrength(1.0)

    def replace(linear: nn.Linear) -> nn.Module:
        layer = BitLinear.from_linear(linear, spec, strength)
        if learned:
            layer.set_scale(layer.ternary()[1])
        return layer

    return replace


def auto_bit_linear(linear: nn.Linear) -> nn.Module:
    from transformers.integrations.bitnet import AutoBitLinear

    made = AutoBitLinear(
        linear.in_features, linear.out_features, bias=False, dtype=linear.weight.dtype, online_quant=True
    )
    made.weight = linear.weight
    return made


def one_bit_llms(linear: nn.Linear) -> nn.Module:
    from onebitllms.layers import BitNetLinear

    made = BitNetLinear(linear.in_features, linear.out_features)
    made.weight = linear.weight
    return made


def candidates() -> list[Candidate]:
    row, tensor, group = TernarySpec("row"), TernarySpec("tensor"), TernarySpec("group", 64)
    return [
        Candidate("nn.Linear", lambda linear: linear),
        Candidate("BitLinear, scale per tensor", ours(tensor, False), held=True),
        Candidate("BitLinear, scale per row", ours(row, False), held=True),
        Candidate("BitLinear, learned scales per group of 64", ours(group, True), held=True),
        Candidate("BitLinear, scale per tensor, int8 forward", ours(tensor, False), held=True, products="int8"),
        Candidate("BitLinear, scale per row, int8 forward", ours(row, False), held=True, products="int8"),
        Candidate("transformers AutoBitLinear, online (its torch.compile)", auto_bit_linear),
        Candidate("onebitllms BitNetLinear", one_bit_llms),
    ]


class Linears(nn.Module):
    """The seven linear layers, each fed what it reads in the model, with given gradients at their outputs."""

    def __init__(self, tokens: int, dtype: torch.dtype) -> None:
        super().__init__()
        for name, (_, inputs, outputs) in LINEARS.items():
            self.add_module(name, nn.Linear(inputs, outputs, bias=False, dtype=dtype))
        sizes = {source: inputs for source, inputs, _ in LINEARS.values()}
        self.inputs = {name: torch.randn(tokens, size, dtype=dtype).requires_grad_() for name, size in sizes.items()}
        self.gradients = [torch.randn(tokens, outputs, dtype=dtype) for _, _, outputs in LINEARS.values()]

    def micro_batch(self) -> list[Tensor]:
        outputs = [self.get_submodule(name)(self.inputs[source]) for name, (source, _, _) in LINEARS.items()]
        torch.autograd.backward(outputs, self.gradients)
        return outputs


class Layer(nn.Module):
    """A decoder layer of transformers: attention, norms and activation are part of both sides of the ratio."""

    def __init__(self, tokens: int, dtype: torch.dtype) -> None:
        super().__init__()
        from transformers import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

        config = LlamaConfig(
            hidden_size=HIDDEN, intermediate_size=WIDTH, num_attention_heads=HEADS, num_key_value_heads=KEYS,
            num_hidden_layers=1, attn_implementation="sdpa",
        )  # fmt: skip
        self.layer = LlamaDecoderLayer(config, 0).to(dtype)
        length = min(tokens, 512)
        self.x = torch.randn(tokens // length, length, HIDDEN, dtype=dtype).requires_grad_()
        self.gradient = torch.randn_like(self.x)
        with torch.no_grad():
            self.rotary = LlamaRotaryEmbedding(config)(self.x, torch.arange(length)[None])

    def micro_batch(self) -> list[Tensor]:
        y = self.layer(self.x, position_embeddings=self.rotary)
        y = y[0] if isinstance(y, tuple) else y
        torch.autograd.backward([y], [self.gradient])
        return [y]


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
WHAT: dict[str, Callable[[int, torch.dtype], Any]] = {"linears": Linears, "layer": Layer}


def build(candidate: Candidate, what: str, tokens: int, dtype: torch.dtype) -> Any:
    """Return the module with its linear layers replaced; the same weights and inputs for every candidate."""
    torch.manual_seed(0)
    model = WHAT[what](tokens, dtype)
    for name, module in list(model.named_modules()):
        if name.rpartition(".")[2] in LINEARS:
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, candidate.replace(module))
    if candidate.products:
        set_products(model, Products(candidate.products))  # type: ignore[arg-type]
    return model


def step(candidate: Candidate, model: Any, accumulation: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Run one step and return its seconds."""
    for tensor in (*model.parameters(), *getattr(model, "inputs", {}).values()):
        tensor.grad = None
    start = clock()
    with held_codes(model) if candidate.held and accumulation > 1 else nullcontext():
        for _ in range(accumulation):
            model.micro_batch()
    return clock() - start


def measure(
    what: str, tokens: int, accumulation: int, dtype: torch.dtype, rounds: int, clock: str, only: str
) -> list[dict[str, Any]]:
    """Return a row for each candidate: median milliseconds of a step and its ratio, or why it could not run."""
    chosen = [
        each for each in candidates() if any(part in each.name for part in only.split("|")) or each.name == "nn.Linear"
    ]
    models: dict[str, tuple[Candidate, Any]] = {}
    failed: dict[str, str] = {}
    for candidate in chosen:
        try:
            model = build(candidate, what, tokens, dtype)
            for _ in range(3):  # compilers and allocators get ready
                step(candidate, model, accumulation)
            models[candidate.name] = candidate, model
        except Exception as error:  # another package's layer may fail in any way: that is its row
            failed[candidate.name] = f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0][:100]}"
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds):
        order = list(models) if turn % 2 == 0 else list(models)[::-1]
        for name in order:
            seconds[name].append(step(*models[name], accumulation, CLOCKS[clock]))
    plain = statistics.median(seconds["nn.Linear"])
    rows: list[dict[str, Any]] = []
    for candidate in chosen:
        row: dict[str, Any] = {"what": what, "accumulation": accumulation, "layer": candidate.name}
        if candidate.name in failed:
            rows.append({**row, "failed": failed[candidate.name]})
            continue
        taken = sorted(seconds[candidate.name])
        rows.append({
            **row,
            "milliseconds": 1e3 * statistics.median(taken),
            "quartiles": [1e3 * taken[len(taken) // 4], 1e3 * taken[-1 - len(taken) // 4]],
            "ratio": statistics.median(taken) / plain,
        })  # fmt: skip
    return rows


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


@contextmanager
def at_threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    yield
    torch.set_num_threads(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1024, help="of a micro-batch")
    parser.add_argument("--accumulation", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--what", nargs="+", choices=list(WHAT), default=list(WHAT))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--only", default="", help="candidates whose name contains one of these, separated by |")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    with at_threads(arguments.threads):
        machine = {
            "processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__,
            "tokens": arguments.tokens, "dtype": arguments.dtype, "rounds": arguments.rounds,
            "clock": arguments.clock,
        }  # fmt: skip
        print(", ".join(f"{key} {value}" for key, value in machine.items()))
        rows = []
        for what in arguments.what:
            for accumulation in arguments.accumulation:
                rows += measure(
                    what,
                    arguments.tokens,
                    accumulation,
                    getattr(torch, arguments.dtype),
                    arguments.rounds,
                    arguments.clock,
                    arguments.only,
                )
                print(f"\n{what}, {accumulation} micro-batches a step\n{'layer':<56}{'ms':>9}{'ratio':>8}   quartiles")
                for row in (row for row in rows if (row["what"], row["accumulation"]) == (what, accumulation)):
                    if "failed" in row:
                        print(f"{row['layer']:<56}  did not run: {row['failed']}")
                        continue
                    low, high = row["quartiles"]
                    print(
                        f"{row['layer']:<56}{row['milliseconds']:>9.1f}{row['ratio']:>8.3f}   {low:.1f} to {high:.1f}"
                    )
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
