"""torch.compile and gradient checkpointing of the student's decoder layers.

A layer's ``forward`` is compiled, not the module: hooks on layers, which objectives read hidden states with, stay
outside of the compiled code and work. A layer whose projections an objective reads is left alone, because hooks inside
of compiled code are not seen. Before training one micro-batch is tried; when that fails, the run goes on without, and
says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import nn

from wrinklefree.errors import InputError
from wrinklefree.models.forward import qkv
from wrinklefree.models.subln import decoder_layers
from wrinklefree.train.audit import note

CompileMode = Literal["none", "default", "reduce-overhead", "max-autotune"]


def checkpoint_layers(student: nn.Module) -> None:
    """Keep a layer's input only, and compute the layer again in the backward (non-reentrant, frozen inputs allowed).

    Raises: InputError when the model's layers cannot.
    """
    # The second is what the first was called before transformers 5.23.
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    enable = next((getattr(student, name) for name in names if hasattr(student, name)), None)
    if enable is None or not getattr(student, "supports_gradient_checkpointing", False):
        raise InputError(
            f"device.gradient_checkpointing: {type(student).__name__} has no such layers; set it to false and lower "
            "batch.micro_batch"
        )
    enable({"use_reentrant": False})


def compile_layers(
    student: nn.Module,
    mode: CompileMode,
    wants: Iterable[str],
    companions: Iterable[object],
    attempt: Callable[[], None],
) -> bool:
    """Compile the decoder layers, try them with ``attempt``, and return whether they are in force.

    ``wants``: names of states that objectives read (`models.forward`). Without a warning nothing is left out: what
    cannot be compiled is said and counted.
    """
    hooked = [str(getattr(each, "name", type(each).__name__)) for each in companions]
    if hooked:
        inside = f"{', '.join(hooked)} looks inside the layers"
        note("fallback", f"device.compile={mode} is OFF: {inside}. Training continues without compiling.")
        return False
    asked = set(wants)
    layers = decoder_layers(student)
    left = [i for i in range(len(layers)) if qkv(i) in asked or qkv(i - len(layers)) in asked]
    chosen = [layer for i, layer in enumerate(layers) if i not in left]
    if left:
        note("fallback", f"device.compile={mode}: layers {left} run uncompiled, an objective reads their projections.")
    from torch._inductor import config as inductor

    # Without this the compiler drops the rounding of group scales to float16, and a few codes in a hundred thousand
    # come out differently than in training without it and in the exported model.
    inductor.emulate_precision_casts = True
    for layer in chosen:
        layer.forward = torch.compile(layer.forward, mode=None if mode == "default" else mode)
    try:
        attempt()
    except Exception as error:
        for layer in chosen:
            del layer.forward
        torch.compiler.reset()
        reason = " ".join(str(error).split())[:300]
        note(
            "fallback",
            f"device.compile={mode} is OFF: {type(error).__name__}: {reason}. Training continues without compiling.",
        )
        return False
    return True
