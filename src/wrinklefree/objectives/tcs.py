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

from torch import Tensor

from wrinklefree.data.batch import TokenBatch
from wrinklefree.errors import InputError
from wrinklefree.objectives.base import Needs
from wrinklefree.objectives.block_diffusion import counted
from wrinklefree.objectives.divergence import top_k_kl
from wrinklefree.objectives.noise import MASKED, NOISED_VIEW


@dataclass(frozen=True)
class TCS:
    """``top_k`` K; ``temperature`` tau. ``temperature_squared`` false leaves out tau^2.

    ``rest`` false renormalises over the K tokens: what the student gives to all others then costs nothing.
    """

    top_k: int = 100
    temperature: float = 5.0
    temperature_squared: bool = True
    rest: bool = True

    needs = Needs(teacher=True, view=NOISED_VIEW, rows=MASKED)

    def __post_init__(self) -> None:
        if self.top_k < 1 or not self.temperature > 0.0:
            raise InputError("tcs: top_k must be at least 1 and temperature above 0")

    def count(self, batch: TokenBatch) -> int:
        return counted(batch)

    def chunk(
        self, student: Tensor, teacher: Tensor | None, targets: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert teacher is not None
        per_token = top_k_kl(student, teacher, self.top_k, self.temperature, self.rest)
        if self.temperature_squared:
            per_token = per_token * self.temperature**2
        if weights is not None:
            per_token = per_token * weights
        same = (student.detach().argmax(dim=-1) == teacher.argmax(dim=-1)).sum()
        return per_token.sum(), {"top1_agreement": same.float()}
