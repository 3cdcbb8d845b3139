"""What is done to gradients before they are used: clipping, and refusing what is not finite."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from wrinklefree.errors import TrainingError
from wrinklefree.train.audit import note, say
from wrinklefree.train.parallel import whole
from wrinklefree.train.session import Session

_LOW_SHARE = 0.01


def clip(session: Session) -> float:
    """Clip the gradients to the configured norm and return the norm they had, over all processes' rows."""
    gradients = [p.grad for p in session.student.parameters() if p.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm(gradients))
    if session.config.clip_norm is not None and bool(torch.isfinite(norm)):
        torch.nn.utils.clip_grads_with_norm_(session.student.parameters(), session.config.clip_norm, norm)
    return float(norm)


def skip(session: Session, figures: Mapping[str, float], norm: float, rate: float) -> None:
    """Count a step whose loss or gradient is not finite, and end the run when they do not stop."""
    position = session.position
    position.nonfinite += 1
    position.nonfinite_in_a_row += 1
    gradients = [(name, whole(p.grad)) for name, p in session.student.named_parameters() if p.grad is not None]
    bad = [name for name, gradient in gradients if not gradient.isfinite().all()]
    terms = {name: value for name, value in figures.items() if name.endswith("/value")}
    seen = (
        f"step {position.step}: loss {figures['loss']:.4g}, gradient norm {norm:.4g} (average so far "
        f"{position.norm_average:.4g}), lr {rate:.3g}, lambda {session.strength():.3g}, objectives {terms}, non-finite "
        f"gradients in {len(bad)} parameters{' such as ' + bad[0] if bad else ''}"
    )
    note("nonfinite_step", f"WARNING: step skipped, weights unchanged. {seen}")
    if position.nonfinite_in_a_row >= session.config.max_nonfinite:
        raise TrainingError(
            f"{position.nonfinite_in_a_row} steps in a row were not finite. {seen}. Lower the learning rate or warm up "
            "longer; the last saved state is intact"
        )


def say_low_shares(session: Session, figures: Mapping[str, float], weights: Mapping[str, float]) -> None:
    """Report, once, an objective that contributes almost nothing."""
    for name in session.manager.active(weights):
        for figure, of in (("share", "loss"), ("gradient_share", "gradient")):
            share = figures.get(f"{name}/{figure}", 1.0)
            if share < _LOW_SHARE and name not in session.low_share_said and figures.get(f"{name}/weight"):
                session.low_share_said.add(name)
                say(
                    f"WARNING: objective {name} is {share:.2%} of the {of}; its weight may be out by orders of "
                    "magnitude"
                )
