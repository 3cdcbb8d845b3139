"""Runs stages through the command line of the package, each once, and keeps what came out of them.

A stage's directory is named by a hash of its command, seed and starting point: what is finished is found again, by a
later call and by another arm that begins in the same way. A stage that was killed resumes from its training state.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arms import Arm, Stage
from settings import Scale
from small_model import described, write_small_model
from texts import HELD_OUT, TRAIN, write_texts

CURVE = {"ce": "next_token/value", "loss": "loss", "lambda": "lambda", "lr": "lr", "grad_norm": "grad_norm"}
_SEEDS_APART = 1000
_PRELOADED = ("wrinklefree.train.stage", "wrinklefree.train.compose", "wrinklefree.eval.perplexity", "hydra")


@dataclass
class Runner:
    """``work``: where everything is kept; nothing in it is needed to read the results."""

    work: Path
    scale: Scale

    def __post_init__(self) -> None:
        (self.work / "stages").mkdir(parents=True, exist_ok=True)
        if not (self.work / "text").exists():
            write_texts(self.work / "text")

    def teacher(self) -> str:
        """Return the model that everything starts from and learns from; pretrain it first when it is a small one."""
        shape = self.scale.small
        if shape is None:
            assert self.scale.model is not None
            return self.scale.model
        start, out = self.work / "init", self.work / "teacher"
        if not start.exists():
            write_small_model(start, shape)
        if _status(out) != "COMPLETED":
            code = self.wf("teacher.log", "train", *self._pretraining(), f"model={start}", "seed=0", "--out", str(out))
            if code:
                raise SystemExit(f"pretraining the teacher failed; see {self.work / 'teacher.log'}")
        return str(out)

    def teacher_result(self) -> dict[str, Any]:
        """Return what is known of the teacher: its sizes, its curve and its held-out loss."""
        teacher = self.teacher()
        found: dict[str, Any] = {"model": Path(teacher).name, "held_out": self._held_out(teacher, "teacher")}
        if self.scale.small:
            words = ["train", *self._pretraining()]
            found |= {"shape": described(self.scale.small), "command": words, "curve": curve(Path(teacher))}
        return found

    def run(self, arm: Arm, seed: int) -> dict[str, Any]:
        """Run what is missing of an arm and return its result; a stage that diverges ends the arm.

        A later stage has a seed of its own: with the same one it would read the text of the stage before it again.
        """
        source, stages, trained = self.teacher(), [], 0
        for stage in arm.stages:
            result = self._stage(stage, source, seed + _SEEDS_APART * trained)
            trained += stage.verb == "train"
            stages.append(result)
            if result["status"] != "COMPLETED":
                break
            source = str(self.work / "stages" / result["key"])
        return {"arm": arm.name, "seed": seed, "facts": arm.facts, "stages": stages}

    def wf(self, log: str, *words: str) -> int:
        """Run a ``wf`` command in a process of its own, its output appended to ``work/log``; return its exit code.

        The process is forked from this one, which has imported everything already: an arm of a minute would otherwise
        begin with ten seconds of imports.
        """
        for module in _PRELOADED:
            __import__(module)
        with (self.work / log).open("a") as file:
            print("$ wf", *words, file=file, flush=True)
        process = multiprocessing.get_context("fork").Process(target=_child, args=(self.work / log, words))
        process.start()
        process.join()
        code = process.exitcode
        if code is None or code < 0 or code == 130:
            raise SystemExit(f"stopped: wf {' '.join(words)} (exit code {code}); the same command goes on")
        return code

    def _pretraining(self) -> list[str]:
        scale = self.scale
        return [
            "training=stage2_pretrain", "model.convert=false", f"budget.max_steps={scale.teacher_steps}",
            f"data.sequence_length={scale.sequence}", "batch.micro_batch=8", "batch.accumulation=1",
            "optimizer.muon_lr=0.02", "optimizer.lr=3e-3", "schedule.warmup_tokens=null",
            f"data.cache_dir={self.work / 'cache'}", *scale.common,
        ]  # fmt: skip

    def _stage(self, stage: Stage, source: str, seed: int) -> dict[str, Any]:
        words = [*stage.overrides, f"seed={seed}"] if stage.verb != "convert" else ["convert", *stage.overrides]
        key = hashlib.sha256(json.dumps([Path(source).name, words]).encode()).hexdigest()[:12]
        out, log = self.work / "stages" / key, f"stages/{key}.log"
        kept = out / "result.json"
        if kept.exists():
            return json.loads(kept.read_text())
        if stage.verb == "bench":
            return self._bench(stage, kept)
        if stage.verb == "convert":
            return self._convert(stage, source, kept)
        begun, before, resumed = time.monotonic(), _cpu_seconds(), out.exists()
        place = [f"model={source}", f"data={self.work / 'text' / TRAIN}", "data.held_out_share=0"]
        place.append(f"data.cache_dir={self.work / 'cache'}")
        code = self.wf(log, "train", *words, *place, "--out", str(out))
        if code == 2 or not (out / "summary.json").exists():
            raise SystemExit(f"wf train does not take these overrides; see {self.work / log}")
        summary = json.loads((out / "summary.json").read_text())
        if code and not summary.get("events", {}).get("nonfinite_step"):  # not a result: a full disk, a bug
            raise SystemExit(f"wf train failed; see {self.work / log}")
        from wrinklefree.artifact.provenance import provenance

        result = {
            "key": key, "name": stage.name, "overrides": list(stage.overrides), "status": summary["status"],
            "seed": seed, "starts_from": Path(source).name, "seconds": time.monotonic() - begun,
            "cpu_seconds": None if resumed else _cpu_seconds() - before, "events": summary.get("events", {}),
            "identity": summary.get("identity"), "recipe": (out / "recipe.yaml").read_text().splitlines(),
            "curve": curve(out), "provenance": provenance(), "said": _said(self.work / log),
        }  # fmt: skip
        if (out / "model.safetensors").exists():
            result["weights"] = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
        if stage.scored and result["status"] == "COMPLETED":
            result["held_out"] = self._held_out(str(out), key, stage.taught)
        _write(kept, result)
        return result

    def _convert(self, stage: Stage, source: str, kept: Path) -> dict[str, Any]:
        """A start that is fitted on the training text (`wf convert`)."""
        from wrinklefree.artifact.provenance import provenance

        out, text = kept.parent, str(self.work / "text" / TRAIN)
        begun, before, found = time.monotonic(), _cpu_seconds(), out.with_name(f"{out.name}.convert.json")
        words = [source, str(out), "--calibration", text, "--no-check", *stage.overrides, "--json", str(found)]
        if self.wf(f"stages/{out.name}.log", "convert", *words):
            raise SystemExit(f"wf convert failed; see {out}.log")
        result = {
            "key": out.name, "name": stage.name, "command": ["convert", *stage.overrides], "status": "COMPLETED",
            "starts_from": Path(source).name, "seconds": time.monotonic() - begun,
            "cpu_seconds": _cpu_seconds() - before, "convert": json.loads(found.read_text()),
            "provenance": provenance(), "held_out": self._held_out(str(out), out.name, stage.taught),
        }  # fmt: skip
        _write(kept, result)
        return result

    def _bench(self, stage: Stage, kept: Path) -> dict[str, Any]:
        from wrinklefree.artifact.provenance import provenance

        kept.parent.mkdir(exist_ok=True)
        found = kept.with_name("bench.json")
        begun = time.monotonic()
        if self.wf(f"stages/{kept.parent.name}.log", "bench", *stage.overrides, "--json", str(found)):
            raise SystemExit(f"wf bench failed; see {kept.parent}.log")
        result = {
            "key": kept.parent.name, "name": stage.name, "command": ["bench", *stage.overrides], "status": "COMPLETED",
            "seconds": time.monotonic() - begun, "bench": json.loads(found.read_text()), "provenance": provenance(),
        }  # fmt: skip
        _write(kept, result)
        return result

    def _held_out(self, model: str, name: str, taught: bool = False) -> dict[str, Any]:
        """The loss on held-out topics of Python's documentation, at full strength (`wf eval`).

        ``taught``: and how far the teacher's distributions are, in the same tokens.
        """
        out = self.work / f"{name}.eval.json"
        if not out.exists():
            words = ["eval", model, "--perplexity", str(self.work / "text" / HELD_OUT)]
            words += ["--window", str(self.scale.sequence), "--limit", str(self.scale.held_out)]
            words += ["--teacher", self.teacher()] if taught else []
            words += ["--json", str(out)]
            if self.wf("eval.log", *words):
                raise SystemExit(f"scoring failed; see {self.work / 'eval.log'}")
        found = json.loads(out.read_text())
        kept = {name: found[name] for name in ("loss", "perplexity", "bits_per_byte", "tokens", "window", "stride")}
        return kept | ({name: found["agreement"][name] for name in ("kl", "top1", "flips")} if taught else {})


def curve(out: Path) -> dict[str, list[float | None]]:
    """Return the figures of every step as columns; seconds are those of the step itself."""
    path = out / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    columns: dict[str, list[float | None]] = {
        name: [_short(row.get(key)) for row in rows] for name, key in CURVE.items()
    }
    columns["ce"] = [row.get(CURVE["ce"]) for row in rows]  # every digit: two arms may have to be equal
    ends = [row.get("seconds", 0.0) for row in rows]
    columns["seconds"] = [_short(end - start) for start, end in zip([0.0, *ends], ends, strict=False)]
    columns["step"] = [row["step"] for row in rows]
    for name in ("layerwise/value", "logits_kd/value", "saliency/kept", "block_diffusion/value", "tcs/value"):
        if any(name in row for row in rows):
            columns[name] = [_short(row.get(name)) for row in rows]
    return columns


def _child(log: Path, words: Sequence[str]) -> None:
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["wf", *words]
    from wrinklefree.cli.main import main

    sys.exit(main())


def _said(log: Path) -> list[str]:
    """What the command said that a reader of its result should know."""
    words = ("Loading the teacher", "OFF", "compile", "WARNING", "non-finite", "diverge", "stopped after")
    return [line for line in log.read_text().splitlines() if any(word in line for word in words)][-8:]


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _status(out: Path) -> str | None:
    path = out / "summary.json"
    return json.loads(path.read_text())["status"] if path.exists() else None


def _write(path: Path, value: Any) -> None:
    from wrinklefree.artifact.files import write_bytes

    write_bytes(path, json.dumps(value).encode())
