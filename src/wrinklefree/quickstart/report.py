"""The quickstart's report for people: Markdown tables and one picture of four panels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from wrinklefree.artifact.files import write_bytes
from wrinklefree.quant.bitlinear import bit_linears
from wrinklefree.quickstart.pictures import draw

_STEPS = {
    "teacher": "the original model",
    "naive_ternary": "plainly rounded (absmean, one scale per tensor)",
    "after_convert": "after calibrated conversion",
    "final": "after distillation",
}


def write_report(out: Path, report: dict[str, Any], original: nn.Module, student: Any, phases: dict[str, Any]) -> None:
    """Write ``report.md`` and ``report.png`` into ``out``."""
    name, layer = _middle(student)
    weights = (original.get_parameter(f"{name}.weight"), layer.weight, layer.ternary()[1], layer.spec)
    draw(out / "report.png", report, phases, name, weights)
    write_bytes(out / "report.md", _markdown(report, phases).encode())


def _middle(student: nn.Module) -> tuple[str, Any]:
    """The up projection of the middle layer, as an example of all."""
    layers = [(name, layer) for name, layer in bit_linears(student) if name.endswith("up_proj")]
    return layers[len(layers) // 2]


def _markdown(report: dict[str, Any], phases: dict[str, Any]) -> str:
    loss, perplexity = report["loss"], report["perplexity"]
    speed, size, agreement = report["decode_tok_s"], report["bytes"], report["agreement_engine_vs_torch"]
    lines = [f"# {report['teacher']['name']}, made ternary", ""]
    if report["partial"]:
        lines += [f"**This is a partial result: {report['partial']}.** The same command goes on.", ""]
    lines += [
        f"Loss in nats per token on {report['held_out']['tokens']} held-out tokens of Python's help topics, windows of "
        f"{report['held_out']['window']} tokens; none of these documents was calibrated or trained on, and training "
        "documents lost every passage they shared with them. Int8 activations are on in all ternary rows.",
        "",
        "| model | loss | perplexity |",
        "| --- | --- | --- |",
        *(f"| {what} | {loss[key]:.3f} | {_number(perplexity[key])} |" for key, what in _STEPS.items()),
        f"| the packed file in the native engine | | {_number(perplexity['engine'])} |",
        "",
        "| | before | after |",
        "| --- | --- | --- |",
        f"| file | {size['source'] / 1e6:.1f} MB (Q4_1) | {size['packed'] / 1e6:.1f} MB, "
        f"{report['bits_per_ternary_weight']:.2f} bits per ternary weight, q8 embedding |",
        f"| decode, {report['machine']['engine_threads']} threads | {speed['torch_fp32']:.1f} tok/s (torch, float32) | "
        f"{speed['engine']:.1f} tok/s ({report['machine']['kernels']}), "
        f"{speed['engine'] / speed['torch_fp32']:.1f} times |",
        "",
        f"Engine against torch: on the same text both choose the same greedy token {agreement['same_choices']} times "
        f"of {agreement['of']}; {agreement['greedy_tokens_equal']} tokens lie before the first differences. The lowest "
        f"cosine of their logits is {agreement['logit_cosine_min']:.5f}; float32 rounding noise alone moves torch's "
        f"own as far as {agreement['noise_cosine_min']:.5f}.",
        *_differences(agreement),
        "",
        f"> **{report['answer']['prompt']}** {' '.join(report['answer']['text'].split())}",
        "",
        *_training(phases),
        "",
        "![loss, layer errors, weights, size and speed](report.png)",
        "",
        "| phase | seconds |",
        "| --- | --- |",
        *(f"| {phase} | {seconds:.1f} |" for phase, seconds in report["seconds"].items()),
        "",
        f"Machine: {report['machine']['cpu']}, {report['machine']['cores']} cores. "
        f"{report['machine']['kernels_reason']}.",
        "",
    ]
    return "\n".join(lines)


def _differences(agreement: dict[str, Any]) -> list[str]:
    return [
        f"Behind `{found['prompt'].strip()!r}` the first difference is token {found['position']}: a tie, the two "
        f"logits lie {found['logit_gap']:.2g} apart and rounding noise moves them by {found['error_bound']:.2g}."
        for found in agreement["differences"]
    ]


def _training(phases: dict[str, Any]) -> list[str]:
    lines = []
    if fitted := phases.get("calibrate"):
        lines.append(
            f"Calibration: {fitted['tokens']:,} tokens in {fitted['seconds']:.0f} s, products in {fitted['dtype']}."
        )
    if trained := phases.get("distill"):
        lines.append(
            f"Distillation: {trained['steps']} steps, {trained['tokens']:,} tokens in {trained['seconds']:.0f} s."
        )
    return lines


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 1e4 else f"{value:.1e}"
