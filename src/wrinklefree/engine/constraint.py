"""What may follow: a rule that an answer keeps to, token by token."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Constraint(Protocol):
    """The state of one answer's rule, from its first token on; used by the thread that computes.

    An end token is allowed where the text may end. Answers with a constraint are decoded in mode ar.
    """

    @property
    def finished(self) -> bool:
        """Whether the text is complete, so that the answer ends behind the token accepted last."""
        ...

    def mask(self) -> NDArray[np.uint32] | None:
        """Return the allowed next tokens, uint32 [ceil(V / 32)]: bit i % 32 of word i // 32 for token i. None: all.

        Raises: InputError when the rule has become too complex to go on.
        """
        ...

    def accept(self, token: int) -> None:
        """Go on behind a token that was allowed."""
        ...
