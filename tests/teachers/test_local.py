"""The local teacher: lazy, frozen, released; pairs that cannot teach are refused."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn
from train_toys import toy_batch, toy_model

from wrinklefree.errors import InputError
from wrinklefree.models.forward import forward
from wrinklefree.teachers.local import LocalTeacher, check_pair


def test_it_loads_on_first_use_freezes_and_releases() -> None:
    made: list[weakref.ref[nn.Module]] = []

    def load() -> nn.Module:
        model = toy_model(1).train()
        made.append(weakref.ref(model))
        return model

    teacher = LocalTeacher(load, forward, toy_model(2))
    assert not teacher.loaded and made == []
    first = teacher.forward(toy_batch(), frozenset())
    assert teacher.loaded and not first.final.requires_grad
    assert not teacher.model.training and not any(p.requires_grad for p in teacher.model.parameters())
    again = teacher.forward(toy_batch(), frozenset())
    assert len(made) == 1 and torch.equal(first.final, again.final)
    del first, again
    teacher.release()
    gc.collect()
    assert not teacher.loaded and made[0]() is None


def test_pairs_that_cannot_teach_are_refused() -> None:
    student = toy_model(1, ternary=True)
    with pytest.raises(InputError, match="the student itself"):
        check_pair(student, student)
    with pytest.raises(InputError, match="vocabulary has 96 tokens, the student's 64"):
        check_pair(toy_model(1, vocab_size=96), student)
    with pytest.raises(InputError, match="its ternary weights are the student's own"):
        check_pair(toy_model(1, ternary=True), student)
    # A latent that moved without changing a code or a scale's rounding is still the same ternary model; another
    # model, or the full-precision source itself, is a teacher.
    check_pair(toy_model(2, ternary=True), student)
    check_pair(toy_model(1), student)


def test_a_refused_teacher_is_not_kept() -> None:
    teacher = LocalTeacher(lambda: toy_model(1, vocab_size=96), forward, toy_model(1))
    with pytest.raises(InputError, match="vocabulary"):
        teacher.forward(toy_batch(), frozenset())
    assert not teacher.loaded
