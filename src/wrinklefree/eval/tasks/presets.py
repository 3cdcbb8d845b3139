"""Names for sets of tasks, and where lm-evaluation-harness keeps the tasks that they name.

The harness finds a task by reading 14,000 files, which takes it 18 seconds; with the folder known it takes none.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """``tasks``: by the harness's names, in the order of the literature's tables. ``about``: one line."""

    about: str
    tasks: tuple[str, ...]


_AVG_5 = ("piqa", "arc_easy", "arc_challenge", "hellaswag", "winogrande")
_AVG_8 = ("arc_easy", "arc_challenge", "boolq", "piqa", "social_iqa", "hellaswag", "openbookqa", "winogrande")
_GLUE = ("sst2", "mnli", "qnli")

# Sources of the sets: avg-5 arXiv 2606.26650 (CAT-Q); avg-8 arXiv 2502.02631 (ParetoQ), which has them from MobileLLM;
# glue and bitdistill arXiv 2510.13998 (BitNet Distillation: the classifications there are of fine-tuned models);
# bitnet-2b4t arXiv 2504.12285, its seven tasks without examples.
PRESETS = {
    "avg-5": Preset("five common-sense tasks, as quantisation papers average them", _AVG_5),
    "avg-8": Preset("the eight tasks of ParetoQ's tables", _AVG_8),
    "bitnet-2b4t": Preset(
        "the seven zero-shot tasks of BitNet b1.58 2B4T",
        ("arc_challenge", "arc_easy", "openbookqa", "boolq", "hellaswag", "piqa", "winogrande"),
    ),
    "glue": Preset("SST-2, MNLI and QNLI, zero-shot", _GLUE),
    "bitdistill": Preset("the tasks of BitNet Distillation, zero-shot", ("mnli", "qnli", "sst2", "cnn_dailymail")),
    "offline": Preset("needs no data", ("exact_choice", "exact_answers", "python_docs")),
}

# Task -> its folder below lm_eval/tasks. Names not here are looked for in the files.
FOLDERS = {
    "arc_challenge": "arc",
    "arc_easy": "arc",
    "boolq": "super_glue",
    "gsm8k": "gsm8k",
    "hellaswag": "hellaswag",
    "lambada_openai": "lambada",
    "lambada_standard": "lambada",
    "mnli": "glue",
    "openbookqa": "openbookqa",
    "piqa": "piqa",
    "qnli": "glue",
    "sciq": "sciq",
    "social_iqa": "siqa",
    "sst2": "glue",
    "wikitext": "wikitext",
    "winogrande": "winogrande",
}
