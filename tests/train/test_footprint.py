"""The plan's memory against every tensor that really lives during a run's steps, followed by PyTorch's profiler."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe_toys import SMALL, write_toy
from torch.profiler import ProfilerActivity, profile
from train_toys import toy_model

from wrinklefree.train.compose import compose
from wrinklefree.train.footprint import memory_bytes
from wrinklefree.train.shape import Shape
from wrinklefree.train.stage import train

# The profiler says of each tensor that was made before it began that its end will not be counted.
pytestmark = pytest.mark.filterwarnings("ignore")
_SIZES: dict[str, Any] = {
    "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 3,
    "num_key_value_heads": 1, "max_position_embeddings": 512,
}  # fmt: skip
_LARGER = [
    *(word for word in SMALL if not word.startswith(("data.seq", "batch.", "budget.max_steps"))),
    "data.sequence_length=128", "batch.micro_batch=4", "batch.accumulation=1", "budget.max_steps=2",
    "log.ternary_every=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_toy(tmp_path_factory.mktemp("toy"))
    words = json.loads((directory / "model" / "config.json").read_text())["vocab_size"]
    toy_model(1, vocab_size=words, **_SIZES).save_pretrained(directory / "model")  # type: ignore[operator]
    return directory


def most_alive(events: Any) -> int:
    """Return the largest sum of bytes that tensors took at any time."""
    alive = most = 0
    for _, size in sorted((each.start_ns(), each.nbytes()) for each in events if each.name() == "[memory]"):
        alive += size
        most = max(most, alive)
    return most


@pytest.mark.parametrize(
    "words",
    [
        ["training=stage2_pretrain", "optimizer=adamw"],
        ["training=stage1_9_layerwise"],
        ["training=causal_diffusion"],
        ["training=logits_only", "optimizer=adamw", "optimizer.embedding_lr=0"],
        ["training=stage2_pretrain", "batch.accumulation=2", "batch.micro_batch=2"],
    ],
    ids=lambda words: " ".join(words),
)
def test_the_plan_is_what_all_tensors_of_a_run_take(words: list[str], toy: Path, tmp_path: Path) -> None:
    recipe = compose([*_LARGER, *words, f"model={toy / 'model'}", f"data={toy / 'texts'}"])
    gc.collect()  # what earlier tests left must not end while this one counts
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        train(recipe, out=tmp_path / "run")
    shape = Shape.of(json.loads((toy / "model" / "config.json").read_text()))
    parts = memory_bytes(recipe, shape)
    planned = sum(size for name, size in parts.items() if name not in ("runtime", "fragments"))
    assert torch.backends.cpu.get_cpu_capability()  # on a CPU; a GPU's allocator is not followed here
    assert planned == pytest.approx(most_alive(profiler.profiler.kineto_results.events()), rel=0.12)
