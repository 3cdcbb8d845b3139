"""Distillation of an autoregressive teacher into a diffusion student, at the masked tokens.

For a masked token x_i, with p = softmax(z_T / tau) the teacher's distribution of x_i given the clean x_1 ... x_{i-1},
and q = softmax(z_S / tau) the student's of x_i given its noised block and the clean blocks before,

    L = tau^2 KL( p || q )     over the teacher's K most probable tokens and one class for all others

summed over the masked tokens. Teacher and student predict the same token: the teacher's state i - 1 always, the
student's state i - 1 with token shift and i without. (Comparing both at i, whatever the student's shift, makes the
student imitate predictions of the token after.)

The teacher reads the clean text, so its prefix has no MASK in it, while the student sees the block's later tokens and
not all of the earlier ones: p is a target with a privileged left context and without the right one, an approximation
that cannot become 0 in general. It carries what the clean text before says; the right context is learned from the
tokens themselves (`objectives.block_diffusion`), so use both.

Despite its name this is top-K distillation, not the target concrete score matching of arXiv 2504.16431, which matches
probability ratios over a neighbourhood.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from wrinklefree.data.batch import TokenBatch
from wrinklefree.objectives.base import Logits, Needs
from wrinklefree.objectives.block_diffusion import counted
from wrinklefree.objectives.logits_kd import LogitsKD
from wrinklefree.objectives.noise import MASKED, NOISED_VIEW
from wrinklefree.teachers.base import TopKRows


@dataclass(frozen=True)
class TCS(LogitsKD):
    """Settings as of `LogitsKD`; ``temperature_squared`` false leaves out tau^2, ``rest=drop`` the rest's class."""

    temperature_squared: bool = True
    top_k: int | None = 100

    needs = Needs(teacher=True, view=NOISED_VIEW, rows=MASKED)
    place: ClassVar[str] = "tcs"

    def count(self, batch: TokenBatch) -> int:
        return counted(batch)

    def chunk(
        self, student: Tensor, teacher: Tensor | TopKRows | None, targets: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if weights is None:
            return super().chunk(student, teacher, targets)
        assert teacher is not None
        source = Logits(teacher) if isinstance(teacher, Tensor) else teacher
        total = (weights * self._per_token(student, teacher, targets)).sum()
        return total, self._metrics(Logits(student.detach()), source)
