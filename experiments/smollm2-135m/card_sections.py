"""The sections of the model card whose content is figures: targets, quality, speed, tasks, stages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import verdict
from card_figures import Figures
from held_text import TRAINED, UNSEEN
from stage_records import KEYS, stages
from verdict import PERPLEXITY_RATIO, SPEED_UP, fastest, more_than, ratio

from wrinklefree.artifact.markdown import table

_UNKNOWN = "not recorded"


def targets(figures: Figures) -> str:
    """Return the table of the targets and whether they are met."""
    own = ratio(figures.losses[figures.delivered], figures.losses["teacher"])
    judged = verdict.quality(figures.losses, figures.delivered)
    rows = [("perplexity on held-out text, token by token, mean over the kinds trained on",
             f"at most {PERPLEXITY_RATIO} times the teacher's", f"{own} times", f"**{judged}**")]  # fmt: skip
    wanted = f"more than {SPEED_UP} times token by token"
    every = figures.speeds()
    block = fastest(every[-1], "block") if every else None
    if block is None:
        return table(("", "target", "found", ""), [*rows, ("decoding by blocks", wanted, "not measured", "**missed**")])
    threads = every[-1]["machine"]["threads"]
    found = f"{block['speed_up']:.2f} times ({block['name']}); {_loss_in_words(block, every[-1])}"
    judged = more_than(block["speed_up"], SPEED_UP)
    rows.append((f"decoding by blocks, {threads} CPU threads", wanted, found, f"**{judged}**"))
    same = fastest(every[-1], "speculative")
    if same is not None:
        found = f"{same['speed_up']:.2f} times ({same['name']}); {_loss_in_words(same, every[-1])}"
        rows.append((f"AR-consistent decoding, {threads} CPU threads", "none", found, ""))
    return table(("", "target", "found", ""), rows)


def _loss_in_words(way: dict[str, Any], speed: dict[str, Any]) -> str:
    base = speed["ways"][0]
    if not all("quality" in each and "like_ar" in each for each in (way, base)):
        return "what it costs in quality was not measured"
    if way["like_ar"]["equal"] == 1.0:
        return "the same text"
    apart = way["quality"]["teacher_loss"] - base["quality"]["teacher_loss"]
    return (f"{way['like_ar']['equal']:.0%} of its tokens are token-by-token decoding's, and the teacher finds "
            f"its text {abs(apart):.2f} nats a token {'less' if apart > 0 else 'more'} likely")  # fmt: skip


def quality(figures: Figures) -> str:
    """Return the table of the delivered model by kind of text, with the means."""
    name, losses = figures.delivered, figures.losses
    ours, theirs = losses[name], losses["teacher"]
    alike, bounds = figures.by_kind("agreement", name), figures.by_kind("bound", name)
    rows = []
    for kind in ours:
        own = alike.get(kind)
        rows.append((
            kind + (" (never trained on)" if kind in UNSEEN else ""), f"{theirs[kind]['perplexity']:.2f}",
            _perplexity(ours[kind]), str(ratio(ours, theirs, [kind])),
            f"{theirs[kind]['bits_per_byte']:.3f} → {ours[kind]['bits_per_byte']:.3f}",
            _with_error(own["kl"], own["kl_error"]) if own else "-", f"{own['top1']:.1%}" if own else "-",
            _with_error(bounds[kind]["loss"], bounds[kind]["standard_error"]) if kind in bounds else "-",
        ))  # fmt: skip
    for title, kinds in (
        ("**mean of the kinds trained on**", TRAINED),
        ("**mean of the kinds never trained on**", UNSEEN),
    ):
        found = ratio(ours, theirs, kinds)
        if found is not None:
            rows.append((title, "", "", f"**{found}**", "", "", "", ""))
    return table(
        ("text", "teacher's perplexity", "ternary perplexity", "ratio", "bits a byte", "KL from the teacher, nats",
         "same first token", "loss by blocks, nats, at most"), rows,
    )  # fmt: skip


def conditions(figures: Figures) -> str:
    """Return how the table of quality was measured."""
    ours = figures.losses[figures.delivered]
    tokens = [each["tokens"] for each in ours.values()]
    documents = [each["documents"] for each in ours.values()]
    one = next(iter(ours.values()))
    small = next(iter(figures.by_kind("agreement", figures.delivered).values()), None)
    text = (
        f"Held-out documents, of which no part was calibrated or trained on; {_range(tokens)} scored tokens of "
        f"{_range(documents)} documents for each kind, the same for every model, in windows of {one['window']} tokens "
        "that "
        "begin without context. Behind ± stands one standard error over documents (of the ratio: of the paired "
        "difference). "
        "The ternary model runs in the engine as it is delivered, with int8 activations; the teacher in torch, "
        "float32. "
    )
    if small:
        text += f"KL and first tokens: about {small['tokens']:,} tokens of each kind, windows of {small['window']}. "
    if figures.by_kind("bound", figures.delivered):
        text += ("Loss by blocks is an upper bound (random masks), its error that of the masks; it compares with the "
                 "logarithm of the perplexity. ")  # fmt: skip
    return text + f"Measured on {figures.machine(f'loss-{figures.delivered}-{next(iter(ours))}')}."


def stages_quality(figures: Figures) -> str:
    """Return the table of all models: ratios by kind, and torch beside the engine."""
    kinds = figures.about["kinds"]
    rows = []
    for name in figures.names:
        each = [ratio(figures.losses[name], figures.losses["teacher"], [kind]) for kind in kinds]
        mean = ratio(figures.losses[name], figures.losses["teacher"])
        rows.append((name, *(str(found) if found else "-" for found in each), str(mean) if mean else "-"))
    return table(("perplexity, times the teacher's", *kinds, "mean of the kinds trained on"), rows)


def engines(figures: Figures) -> str:
    """Return one line for each model that was measured in torch too."""
    lines = []
    for name in figures.names:
        by_torch, by_engine = figures.by_kind("torch", name), figures.by_kind("engine", name)
        for kind in by_torch.keys() & by_engine.keys():
            one, other = by_torch[kind], by_engine[kind]
            lines.append(f"- {name}, {kind}, {one['tokens']:,} tokens: loss {other['loss']:.4f} in the engine, "
                         f"{one['loss']:.4f} in torch")  # fmt: skip
    return "\n".join(lines)


def speed(figures: Figures) -> str:
    """Return a table of the ways of decoding for each number of threads."""
    parts = []
    # The teacher judged the answers in the last of them; they are the same with any number of threads.
    judged = {way["name"]: way for way in figures.speeds()[-1]["ways"]} if figures.speeds() else {}
    for found in reversed(figures.speeds()):
        rows = []
        for way in found["ways"]:
            known = {**judged.get(way["name"], {}), **way}
            quality, like = known.get("quality"), known.get("like_ar")
            rows.append((
                way["name"], f"{way['tok_s']:.0f}" if way["tok_s"] else "-",
                f"{way['speed_up']:.2f}" if way["speed_up"] is not None else "-", f"{way['tokens_per_forward']:.2f}",
                f"{like['equal']:.0%}" if like else "-", f"{-quality['teacher_loss']:.3f}" if quality else "-",
                f"{quality['teacher_first']:.0%}" if quality else "-",
                f"{quality['repeated_4']:.0%}" if quality else "-",
            ))  # fmt: skip
        threads = found["machine"]["threads"]
        parts.append(f"{threads} thread{'s' * (threads > 1)}:")
        parts.append(table(("way", "tokens a second", "to token by token", "tokens a pass", "equal to token by token",
                            "teacher's log-probability a token", "teacher's own first choice",
                            "repeated 4-grams"), rows))  # fmt: skip
    return "\n\n".join(parts)


def speed_conditions(figures: Figures) -> str:
    """Return how the tables of speed were measured."""
    found = figures.speeds()[-1]
    return (
        f"{found['prompts']} prompts (half of them questions, half beginnings of documentation), greedy, at most "
        f"{found['max_tokens']} tokens each, {found['repeats']} repeat{'s' * (found['repeats'] > 1)}, all ways taking "
        "turns in one process, "
        "medians; a "
        f"ratio is to the token-by-token runs just before and after. {found['machine']['cpu']}, "
        f"{found['machine']['kernels']}. `speculative` proposes tokens and verifies them (AR-consistent): its text is "
        "that of token-by-token decoding. `block` fills blocks in parallel: `t` is the confidence from which a token "
        "is "
        "kept, `n` how many are kept in a pass, whatever their confidence."
    )


def tasks(figures: Figures) -> str:
    """Return the table of tasks, teacher beside student, and what could not be had."""
    both = [figures.of(f"tasks-{name}") for name in ("teacher", figures.delivered)]
    parts = []
    if all(both):
        rows = []
        for name, one in both[0]["results"].items():
            other = both[1]["results"][name]
            metrics = [each["metrics"][each["primary"]] for each in (one, other)]
            cells = [_with_error(each["value"], each["standard_error"]) for each in metrics]
            rows.append((name, f"{one['documents']} of {one['of']}, {one['primary']}", *cells))
        parts.append(table(("task", "documents, metric", "teacher", "ternary"), rows))
    for name, found in (figures.of("tasks-missing") or {}).items():
        of = f" ({', '.join(found['tasks'])})" if found["tasks"] != [name] else ""
        parts.append(f"{name} was not measured{of}: {found['why']}.")
    return "\n\n".join(parts)


def made(figures: Figures) -> str:
    """Return the table of stages."""
    keys, known = KEYS[:-1], stages(figures.work, figures.names)
    rows = [(*(shown(stage[key]) or _UNKNOWN for key in keys), shown(stage["note"])) for stage in known]
    return table(("stage", "command", "tokens", "minutes", "hardware", "seed", ""), rows)


def shown(text: str) -> str:
    """Return a text without the directories of the machine it was written on."""
    return re.sub(r"(?<![\w.:/])(?:/[\w.+@-]+)+/([\w.+@-]+)", r"\1", text)


def _perplexity(found: dict[str, Any]) -> str:
    error = found["standard_error"]
    return f"{found['perplexity']:.2f}" + ("" if error is None else f" ± {found['perplexity'] * error:.2f}")


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.3f}" + ("" if error is None else f" ± {error:.3f}")


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
