"""Quality of decoded text: against counts by hand, the loss of the whole text, and answers known to be right."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from train_toys import toy_model

from wrinklefree.errors import InputError
from wrinklefree.eval.exact_tasks import KINDS, exact_tasks, is_right, shares_right
from wrinklefree.eval.loss import held_out_loss, torch_logits
from wrinklefree.eval.quality import Answer, common_prefix, likeness, text_quality
from wrinklefree.eval.text import EvaluationText, Window
from wrinklefree.models.sampling import sample


def test_n_grams_are_counted() -> None:
    found = text_quality([Answer((1,), (1, 2, 1, 2, 1, 2, 1)), Answer((1,), (3, 3, 3)), Answer((1,), ())])
    assert (found.answers, found.tokens) == (3, 10)
    assert found.distinct_1 == 3 / 10 and found.distinct_2 == 3 / 8 and found.distinct_3 == 3 / 6
    # 1212, 2121, 1212, 2121: half were there before; the others have no 4-gram.
    assert found.repeated_4 == pytest.approx(0.5 / 3) and found.longest_run == 3
    assert found.teacher_loss is found.teacher_first is None


def test_the_teachers_figures_are_its_losses_after_the_prompt_and_its_greedy_choices() -> None:
    teacher = toy_model(3)
    prompts = [[4, 9, 2], [7, 7]]
    greedy = sample(teacher, prompts, [0, 0], 6, temperature=0.0)
    own = [Answer(tuple(p), tuple(t)) for p, t in zip(prompts, greedy, strict=True)]
    found = text_quality(own, torch_logits(teacher))
    assert found.teacher_first == 1.0
    windows = tuple(Window(np.array([*a.prompt, *a.tokens]), len(a.prompt)) for a in own)
    expected = held_out_loss(torch_logits(teacher), EvaluationText("t", windows, 9, 9, 17, 0))
    assert found.teacher_loss == pytest.approx(expected.loss) and found.tokens == expected.tokens == 12
    assert found.teacher_perplexity == pytest.approx(math.exp(expected.loss))
    other = [Answer(own[0].prompt, (*own[0].tokens[:-1], (own[0].tokens[-1] + 1) % 60)), own[1]]
    worse = text_quality(other, torch_logits(teacher))
    assert worse.teacher_first == pytest.approx(11 / 12) and worse.teacher_loss > found.teacher_loss  # type: ignore[operator]


def test_likeness() -> None:
    a = [Answer((1,), (5, 6, 7, 8)), Answer((2,), (5, 6)), Answer((3,), ())]
    b = [Answer((1,), (5, 6, 9, 8, 1)), Answer((2,), (5, 6)), Answer((3,), ())]
    found = likeness(a, b)
    assert found.same == 2 / 3 and found.prefix == 4 / 3 and found.equal == 5 / 7
    assert found.prefix_share == pytest.approx((2 / 5 + 1 + 1) / 3)
    assert likeness(a, a).equal == likeness(a, a).same == 1.0
    assert common_prefix([1, 2], [1, 2, 3]) == 2 and common_prefix([], [1]) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: text_quality([]), "no token"),
        (lambda: text_quality([Answer((), (1,))], lambda ids: np.zeros((len(ids), 9), np.float32)), "empty prompt"),
        (lambda: text_quality([Answer((1,), (9,))], lambda ids: np.zeros((len(ids), 9), np.float32)), "above token 9"),
        (lambda: likeness([], []), "at least one"),
        (lambda: likeness([Answer((1,), (2,))], [Answer((2,), (2,))]), "same prompts"),
        (lambda: exact_tasks(0, 0), "found 0 of each"),
        (lambda: shares_right(exact_tasks(0, 1), ["a"]), "5 tasks and 1 texts"),
    ],
)
def test_wrong_inputs_are_input_errors(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
    with pytest.raises(ArithmeticError):
        text_quality([Answer((1,), (2,))], lambda ids: np.full((len(ids), 9), np.nan, np.float32))


def test_tasks_follow_from_the_seed_and_their_answers_are_right() -> None:
    tasks = exact_tasks(1, 4)
    assert tasks == [task for task in exact_tasks(1, 6) if task in tasks] and len(set(tasks)) == 4 * len(KINDS)
    assert len(set(tasks) & set(exact_tasks(2, 4))) <= 1  # by chance
    right = [f" {task.answer}\nand more" for task in tasks]
    assert shares_right(tasks, right) == {**dict.fromkeys(KINDS, 1.0), "all": 1.0}
    wrong = [task.answer[1:] for task in tasks]
    assert shares_right(tasks, wrong)["all"] == 0.0
    half = [text if i % 2 else "no" for i, text in enumerate(right)]
    assert set(shares_right(tasks, half).values()) == {0.5}


def test_a_longer_word_or_number_is_another_answer() -> None:
    task = next(task for task in exact_tasks(0, 1) if task.kind == "count on")
    assert is_right(task, task.answer) and is_right(task, f"{task.answer}, ") and not is_right(task, f"{task.answer}0")
    for each in exact_tasks(3, 3):
        assert not each.prompt.endswith(" ") and each.answer == each.answer.strip()
        shown = each.answer.split(", ")[0].split(" ")[0]
        assert shown in each.prompt or each.kind == "count on"
