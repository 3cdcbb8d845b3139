"""Small tasks with one right answer, made from a seed, that a model of 100 million parameters can do in part.

Each shows a pattern and asks for several more tokens of it: copying and counting fail at a single wrong token, so they
show what deciding tokens together costs, where a perplexity does not. The right answer is known, so no model judges.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from wrinklefree.data.permutation import key, mix, permute
from wrinklefree.errors import InputError

_PURPOSE = 0x7461736B
_WORDS = [
    *("apple", "river", "stone", "green", "cloud", "horse", "paper", "light", "house", "water", "music", "table"),
    *("bread", "chair", "plant", "smile", "ocean", "tiger", "lemon", "piano", "train", "glass", "night", "dream"),
    *("eagle", "queen", "sugar", "beach", "knife", "robot", "clock", "flame", "storm", "sheep", "brush", "crown"),
    *("mouse", "heart", "spoon", "field"),
]


@dataclass(frozen=True)
class ExactTask:
    """``prompt`` is to be continued; right is what begins with ``answer`` (blanks before it do not count)."""

    kind: str
    prompt: str
    answer: str


class _Draws:
    """Numbers that follow from a seed, a kind and a number alone."""

    def __init__(self, *parts: int) -> None:
        self._parts, self._count = parts, 0

    def integer(self, least: int, most: int) -> int:
        """Return a whole number from ``least`` to ``most``."""
        self._count += 1
        drawn = mix(np.array([key(_PURPOSE, *self._parts, self._count)], np.uint64))[0]
        return least + int(drawn) % (most - least + 1)

    def words(self, number: int) -> list[str]:
        """Return different words."""
        self._count += 1
        chosen = permute(np.arange(number), len(_WORDS), key(_PURPOSE, *self._parts, self._count))
        return [_WORDS[i] for i in chosen]


def _copy_list(draws: _Draws) -> tuple[str, str]:
    *shown, asked = (", ".join(draws.words(4)) for _ in range(3))
    return "".join(f"List: {words}\nCopy: {words}\n\n" for words in shown) + f"List: {asked}\nCopy:", asked


def _copy_sentence(draws: _Draws) -> tuple[str, str]:
    (x, y, z), (p, q, r) = draws.words(3), draws.words(3)
    first, second = f"The {x} and the {y} saw a {z}.", f"The {p} and the {q} saw a {r}."
    return f"Say: {first}\nAnswer: {first}\nSay: {second}\nAnswer:", second


def _count_on(draws: _Draws) -> tuple[str, str]:
    start = draws.integer(1, 300)
    numbers = [str(start + i) for i in range(11)]
    return f"{', '.join(numbers[:6])},", ", ".join(numbers[6:])


def _pattern(draws: _Draws) -> tuple[str, str]:
    words = draws.words(draws.integer(2, 3))
    return f"{', '.join(words * 4)},", ", ".join(words * 2)


def _python_list(draws: _Draws) -> tuple[str, str]:
    a, b = ([draws.integer(0, 9) for _ in range(4)] for _ in range(2))
    return f">>> x = {a}\n>>> print(x)\n{a}\n>>> y = {b}\n>>> print(y)\n", str(b)


KINDS: dict[str, Callable[[_Draws], tuple[str, str]]] = {
    "copy a list": _copy_list,
    "copy a sentence": _copy_sentence,
    "count on": _count_on,
    "continue a pattern": _pattern,
    "print a list": _python_list,
}


def exact_tasks(seed: int = 0, of_each: int = 10) -> list[ExactTask]:
    """Return ``of_each`` tasks of each kind; a larger number begins with the same ones."""
    if of_each < 1:
        raise InputError(f"tasks: found {of_each} of each kind, at least 1 is needed")
    return [
        ExactTask(name, *make(_Draws(seed, kind, number)))
        for kind, (name, make) in enumerate(KINDS.items())
        for number in range(of_each)
    ]


def is_right(task: ExactTask, text: str) -> bool:
    """Return whether ``text``, written after the prompt, begins with the answer, and with no longer word or number."""
    found = text.lstrip()
    rest = found[len(task.answer) :]
    return found.startswith(task.answer) and not (task.answer[-1].isalnum() and rest[:1].isalnum())


def shares_right(tasks: Sequence[ExactTask], texts: Sequence[str]) -> dict[str, float]:
    """Return the share of right answers of each kind, and of all under "all".

    Raises: InputError when there are not as many texts as tasks, or none.
    """
    if not tasks or len(tasks) != len(texts):
        raise InputError(f"tasks: found {len(tasks)} tasks and {len(texts)} texts; one text for each task is needed")
    total = Counter(task.kind for task in tasks)
    right = Counter(task.kind for task, text in zip(tasks, texts, strict=True) if is_right(task, text))
    return {**{kind: right[kind] / count for kind, count in total.items()}, "all": right.total() / len(tasks)}
