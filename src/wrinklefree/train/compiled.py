"""Fused layers, torch.compile and gradient checkpointing of the student's decoder layers.

A layer's ``forward`` is replaced, not the module: hooks on layers, which objectives read hidden states with, stay
outside of it and work. A layer whose projections an objective reads is left alone, because hooks inside of compiled
code are not seen. Before training with torch.compile one micro-batch is tried; when that fails, the run goes on
without, and says why.

``fused`` is `models.fused_layer`: forward and backward by hand, on the CPU in bf16-mixed. It needs no compiler and no
time to start, and is the fastest there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import nn

from wrinklefree.errors import InputError
from wrinklefree.models.forward import qkv
from wrinklefree.models.fused_layer import FusedForward, unfusable
from wrinklefree.models.subln import decoder_layers
from wrinklefree.train.audit import note

CompileMode = Literal["none", "fused", "default", "reduce-overhead", "max-autotune"]


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
    """Compile or fuse the decoder layers, try them with ``attempt``, and return whether they are in force.

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
    return _fuse(chosen) if mode == "fused" else _compile(chosen, mode, attempt)


def _fuse(layers: list[nn.Module]) -> bool:
    reasons = {i: reason for i, layer in enumerate(layers) if (reason := unfusable(layer))}
    for reason in dict.fromkeys(reasons.values()):
        count = list(reasons.values()).count(reason)
        note("fallback", f"device.compile=fused: {count} of {len(layers)} layers run as they are: {reason}.")
    said: set[str] = set()

    def fallen(reason: str) -> None:
        if reason not in said:
            said.add(reason)
            note("fallback", f"device.compile=fused: layers run as they are where there is {reason}.")

    for i, layer in enumerate(layers):
        if i not in reasons:
            layer.forward = FusedForward(layer, fallen)
    return len(reasons) < len(layers)


def _compile(layers: list[nn.Module], mode: CompileMode, attempt: Callable[[], None]) -> bool:
    import torch._dynamo.config as dynamo
    from torch._inductor import config as inductor

    # Without this the compiler drops the rounding of group scales to float16, and a few codes in a hundred thousand
    # come out differently than in training without it and in the exported model.
    inductor.emulate_precision_casts = True
    for layer in layers:
        layer.forward = torch.compile(layer.forward, mode=None if mode == "default" else mode)
    try:
        # To the compiler all layers are one function. If something made it compile each anew, it would stop after 8
        # and leave the others as they are, with no more than a line in its log.
        with dynamo.patch(fail_on_recompile_limit_hit=True):
            attempt()
    except Exception as error:
        for layer in layers:
            del layer.forward
        torch.compiler.reset()
        reason = " ".join(str(error).split())[:300]
        note(
            "fallback",
            f"device.compile={mode} is OFF: {type(error).__name__}: {reason}. Training continues without compiling.",
        )
        return False
    return True
