"""How near `wf plan`'s memory is to what training takes: real runs of a few steps, each in a process of its own.

    python benchmarks/plan_memory.py CHECKPOINT [CHECKPOINT ...] [--make 33m 0.5b] [--steps 2] [--only NAME ...]
                                     [--results DIR] [--report FILE]

For each checkpoint and configuration: the plan's estimate, the largest resident size the kernel saw (VmHWM) in the
first step and before it, in the steps after it, and while the checkpoint was written, and the ratio of the plan to the
largest. ``--make`` adds models of other sizes from a configuration and a seed, with the first checkpoint's tokenizer.
The text is made up, because memory does not depend on what is read. On a CPU.

Each measurement is one JSON file in ``--results``; what is there already is not measured again, so that an interrupted
benchmark goes on and the plan can be looked at again without training (``--estimate``).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# Name -> overrides. Recipes as they are shipped, but for the batch: the state of the optimizer is there after the first
# step, the high point in the second, where every curriculum has its objectives active and strengths are half way up.
_ROWS = {n: [f"batch.micro_batch={n}", "data.sequence_length=256"] for n in (1, 2, 4, 8)}
_STAGE2 = "training=stage2_pretrain"
CONFIGURATIONS: dict[str, list[str]] = {
    "adamw 2x256": [_STAGE2, "optimizer=adamw", *_ROWS[2]],
    "muon 2x256": [_STAGE2, *_ROWS[2]],
    "muonclip 1x512 x2": [
        _STAGE2, "optimizer=muonclip", "batch.micro_batch=1", "batch.accumulation=2", "data.sequence_length=512",
    ],
    "adamw_8bit 8x256": [_STAGE2, "optimizer=adamw_8bit", *_ROWS[8]],
    "apollo 1x256": [_STAGE2, "optimizer=apollo", *_ROWS[1]],
    "checkpointed 8x256": [_STAGE2, *_ROWS[8], "device.gradient_checkpointing=true"],
    "mixed bf16 4x256": [_STAGE2, *_ROWS[4], "device.precision=bf16-mixed"],
    "bfloat16 4x256": [_STAGE2, *_ROWS[4], "model.dtype=bfloat16"],
    "taught 4x256": ["training=quick_distill", *_ROWS[4]],
    "taught int8 4x256": ["training=quick_distill", *_ROWS[4], "teacher.weights=int8"],
    "taught top-20 4x256": ["training=quick_distill", *_ROWS[4], "teacher.top_k=20"],
    "layerwise 2x256": ["training=stage1_9_layerwise", *_ROWS[2]],
    "layerwise mixed 8-bit 4x256": [
        "training=stage1_9_layerwise", "optimizer=adamw_8bit", "device.precision=bf16-mixed", *_ROWS[4],
    ],
    "checkpointed mixed 8x256": [
        _STAGE2, "optimizer=adamw", *_ROWS[8], "device.precision=bf16-mixed", "device.gradient_checkpointing=true",
    ],
    "relations 2x256": ["training=bitdistill_full", *_ROWS[2]],
    "relations 1x1024": ["training=bitdistill_full", "batch.micro_batch=1", "data.sequence_length=1024"],
    "causal blocks 2x256": ["training=causal_diffusion", *_ROWS[2]],
    "blocks and text 1x256": ["training=unified", *_ROWS[1]],
    "blocks and teacher 1x256": ["training=dlm_distill", *_ROWS[1]],
    "low rank 2x256": ["training=lrc_calibration", *_ROWS[2], "low_rank.init=random"],
    "classes 8x128": ["training=classification", "batch.micro_batch=8", "data.sequence_length=128"],
}  # fmt: skip
_BFLOAT16 = ("bfloat16 4x256",)
_COMMON = [
    "budget.total_tokens=null", "budget.max_seconds=null", "log.tracker=none", "device.accelerator=cpu",
    "log.ternary_every=0",
]  # fmt: skip

# Run in the process that is measured: argv is overrides, out directory; the last line is JSON. Bytes.
_CHILD = """
import json, sys
from pathlib import Path
from wrinklefree.train.compose import compose
from wrinklefree.train.plan import plan
from wrinklefree.train.stage import train

def peak(name="VmHWM"):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024

def seen(position, figures):
    peaks.append(peak())
    seconds.append(position.seconds)
    Path("/proc/self/clear_refs").write_text("5")

*overrides, out = sys.argv[1:]
recipe = compose(overrides)
runtime, peaks, seconds = peak(), [], []
train(recipe, out=Path(out), on_step=seen)
print(json.dumps({"runtime": runtime, "first": peaks[0], "later": max(peaks[1:]), "end": peak(), "seconds": seconds}))
"""
_MAKE = """
import sys, torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
name, tokenizer, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(tokenizer)
ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
both = {"vocab_size": len(tokenizer), "tie_word_embeddings": True, **ids}
torch.manual_seed(0)
if name == "33m":
    model = LlamaForCausalLM(LlamaConfig(
        hidden_size=384, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=6, num_key_value_heads=3,
        head_dim=64, **both))
else:
    torch.set_default_dtype(torch.bfloat16)
    model = Qwen3ForCausalLM(Qwen3Config(
        hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
        head_dim=128, **both))
model.save_pretrained(out)
tokenizer.save_pretrained(out)
"""


def measure(name: str, model: str, data: Path, steps: int) -> dict[str, Any]:
    """Run one configuration and return what its process took, in bytes."""
    with tempfile.TemporaryDirectory() as out:
        words = [*_overrides(name, model, data), f"budget.max_steps={steps}", f"{out}/run"]
        done = subprocess.run([sys.executable, "-c", _CHILD, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def estimate(name: str, model: str, data: Path) -> dict[str, float]:
    """Return what the plan says of one configuration, by part, in bytes."""
    from wrinklefree.train.compose import compose
    from wrinklefree.train.plan import plan

    return plan(compose([*_overrides(name, model, data), "budget.max_steps=2"]), []).memory


def _overrides(name: str, model: str, data: Path) -> list[str]:
    given = [*CONFIGURATIONS[name], *_COMMON, f"model={model}"]
    given.append(f"data={data / ('labelled.jsonl' if 'classes' in name else 'texts')}")
    if not any(override.startswith("batch.accumulation") for override in given):
        given.append("batch.accumulation=1")
    return given


def _data(directory: Path) -> Path:
    """Write made-up texts and labelled lines; return ``directory``."""
    (directory / "texts").mkdir(exist_ok=True)
    for number in range(12):
        text = "".join(f"Line {i} of text {number}.\n" for i in range(900))
        (directory / "texts" / f"{number}.txt").write_text(text)
    lines = [{"text": f"Sentence {n} says nothing. " * 12, "label": ("no", "yes")[n % 2]} for n in range(200)]
    (directory / "labelled.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def _made(names: list[str], tokenizer: str, directory: Path) -> list[str]:
    for name in names:
        if not (directory / name / "config.json").exists():
            words = [sys.executable, "-c", _MAKE, name, tokenizer, str(directory / name)]
            subprocess.run(words, check=True, capture_output=True)
    return [str(directory / name) for name in names]


def _line(row: dict[str, Any]) -> str:
    sizes = [row["measured"][point] for point in ("first", "later", "end")]
    gib = " ".join(f"{size / 2**30:8.2f}" for size in (sum(row["plan"].values()), max(sizes), *sizes))
    return f"{row['model']:8} {row['name']:26} {gib}  {sum(row['plan'].values()) / max(sizes):6.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", metavar="CHECKPOINT", help="converted checkpoints (wf convert)")
    parser.add_argument("--make", nargs="*", choices=["33m", "0.5b"], default=[])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=CONFIGURATIONS, default=list(CONFIGURATIONS))
    parser.add_argument("--estimate", action="store_true", help="measure nothing; compare with what is in --results")
    parser.add_argument("--results", type=Path, default=Path("plan-memory"))
    given = parser.parse_args()
    given.results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        data = _data(Path(scratch))
        models = given.models + _made(given.make, given.models[0], given.results / "models")
        print(
            f"{'model':8} {'configuration':26} {'plan':>8} {'measured':>8} {'first':>8} {'later':>8} {'end':>8}   ratio"
        )
        for model in models:
            for name in given.only:
                size = Path(model).name
                kept = given.results / f"{size} {name}.json".replace(" ", "-")
                if not kept.exists() and given.estimate:
                    continue
                found = json.loads(kept.read_text())["measured"] if kept.exists() else None
                row = {"model": size, "name": name, "measured": found or measure(name, model, data, given.steps)}
                row["plan"] = estimate(name, model, data)
                kept.write_text(json.dumps(row, indent=2) + "\n")
                print(_line(row), flush=True)


if __name__ == "__main__":
    main()
