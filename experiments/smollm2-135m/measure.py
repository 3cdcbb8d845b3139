"""Every figure of the run, from the teacher, the stages' models and the held-out text, as WORK/figures/*.json.

python measure.py WORK --teacher MODEL [--model NAME=PATH ...] [--deliver NAME] [--quick]

The same command goes on where it was stopped: a figure that is there is not made again unless its model, text or
settings have changed. Ternary models are measured as packed files, by the engine: what is measured is what runs. A
stage's checkpoint WORK/NAME is measured as WORK/packed-NAME, which is made (in WORK/figures) where it is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import answers
import speed_figures
import task_figures
import text_figures
from figure_store import FigureStore, model_hash
from held_text import HeldText, held_text, kinds_in
from settings import EMBEDDING
from speed_figures import SpeedSizes

from wrinklefree.artifact.manifest import model_format, read_config
from wrinklefree.artifact.tokenizer import Tokenizer
from wrinklefree.eval.opening import open_scorer
from wrinklefree.eval.scorer import Scorer, WithTokenizer, document_ids

STAGES = ("calibrated-row", "calibrated-group", "layerwise", "distilled", "distilled-again", "blocks")
FIGURES = ("loss", "torch", "agreement", "bound", "answers", "speed", "tasks")
_WF = (sys.executable, "-c", "import sys; sys.argv[0]='wf'; from wrinklefree.cli.main import main; sys.exit(main())")


@dataclass(frozen=True)
class Sizes:
    """Tokens are of each kind of text. ``samples``: masks of each block. ``documents``: of each task."""

    tokens: int
    torch_tokens: int
    agreement_tokens: int
    bound_tokens: int
    answer_tokens: int
    documents: int
    speed: SpeedSizes
    window: int = 512
    agreement_window: int = 256
    samples: int = 4


FULL = Sizes(8192, 2048, 2048, 2048, 128, 200, SpeedSizes(4, 128, 3, 25))
QUICK = Sizes(2048, 512, 512, 512, 48, 40, SpeedSizes(2, 64, 1, 5))


@dataclass(frozen=True)
class Model:
    """``path``: what is measured; ``checkpoint``: what it was packed from, where that is known; ``sha256``: of path."""

    name: str
    path: Path
    checkpoint: Path | None
    sha256: str


@dataclass(frozen=True)
class Job:
    """A figure that a model's scorer makes."""

    name: str
    key: dict[str, Any]
    make: Callable[[Scorer], Any]


class Measurement:
    """The teacher, the models, the texts and the store of one command."""

    def __init__(
        self, corpus: Path, teacher: Path, models: Sequence[Model], delivered: str, sizes: Sizes, store: FigureStore,
        threads: int,
    ) -> None:  # fmt: skip
        self.corpus, self.models, self.delivered, self.sizes, self.store = corpus, models, delivered, sizes, store
        self.threads = threads
        self.teacher = Model("teacher", teacher, None, model_hash(teacher))
        self.kinds = kinds_in(corpus)
        self._encode = partial(document_ids, WithTokenizer(Tokenizer.load(models[-1].path)))

    def text(self, kind: str, tokens: int, window: int | None = None) -> HeldText:
        return held_text(self.corpus, kind, self._encode, tokens, window or self.sizes.window)

    def run(self, wanted: Sequence[str]) -> None:
        """Make the figures of these groups (see FIGURES), in their order."""
        for group in (group for group in FIGURES if group in wanted):
            getattr(self, f"_{group}")()

    def _each(self, model: Model, jobs: Sequence[Job], path: Path | None = None) -> None:
        """Open a model, if any of its figures is missing, and make those."""
        due = [job for job in jobs if self.store.get(job.name, job.key) is None]
        if due:
            with open_scorer(str(path or model.path), self.threads) as scorer:
                for job in due:
                    self.store.once(job.name, job.key, partial(job.make, scorer))

    def _checked(self, text: HeldText, make: Callable[[Scorer, HeldText], Any]) -> Callable[[Scorer], Any]:
        def made(scorer: Scorer) -> Any:
            for whole in text.texts:
                if document_ids(scorer, whole) != self._encode(whole):
                    raise SystemExit(f"{scorer.name}: its tokenizer splits held-out {text.kind} differently")
            return make(scorer, text)

        return made

    def _losses(self, model: Model, kinds: Sequence[str], tokens: int, group: str) -> list[Job]:
        texts = [self.text(kind, tokens) for kind in kinds]
        return [
            Job(f"{group}-{model.name}-{text.kind}", {"model": model.sha256, "text": text.sha256},
                self._checked(text, text_figures.losses))
            for text in texts
        ]  # fmt: skip

    def _loss(self) -> None:
        for model in (self.teacher, *self.models):
            self._each(model, self._losses(model, self.kinds, self.sizes.tokens, "loss"))

    def _torch(self) -> None:
        """The same tokens by the checkpoint in torch and by the packed file: do they agree?"""
        kind = "docs" if "docs" in self.kinds else self.kinds[0]
        for model in self.models:
            if model.checkpoint is not None:
                self._each(model, self._losses(model, [kind], self.sizes.torch_tokens, "engine"))
                self._each(model, self._losses(model, [kind], self.sizes.torch_tokens, "torch"), model.checkpoint)

    def _agreement(self) -> None:
        for kind in self.kinds:
            text = self.text(kind, self.sizes.agreement_tokens, self.sizes.agreement_window)
            names = {model.name: f"agreement-{model.name}-{kind}" for model in self.models}
            keys = {m.name: {"model": m.sha256, "teacher": self.teacher.sha256, "text": text.sha256}
                    for m in self.models}  # fmt: skip
            due = [m for m in self.models if self.store.get(names[m.name], keys[m.name]) is None]
            if not due:
                continue
            with open_scorer(str(self.teacher.path), self.threads) as teacher:
                assert teacher.logits is not None
                theirs = text_figures.remembered(teacher.logits)
                for model in due:
                    compare = partial(text_figures.agreements, theirs)
                    make = self._checked(text, compare)
                    self._each(model, [Job(names[model.name], keys[model.name], make)])

    def _bound(self) -> None:
        for model in self.models:
            if (read_config(model.path)["wrinklefree"] or {}).get("dlm") is None:
                continue
            texts = [self.text(kind, self.sizes.bound_tokens) for kind in self.kinds]
            make = partial(text_figures.block_bound, samples=self.sizes.samples)
            self._each(model, [
                Job(f"bound-{model.name}-{text.kind}",
                    {"model": model.sha256, "text": text.sha256, "samples": self.sizes.samples},
                    self._checked(text, make))
                for text in texts
            ])  # fmt: skip

    def _answers(self) -> None:
        asked, most = answers.prompts(), self.sizes.answer_tokens
        for model in (self.teacher, self._final()):
            key = {"model": model.sha256, "prompts": asked, "max_tokens": most}
            make = partial(answers.answers, asked=asked, max_tokens=most)
            self._each(model, [Job(f"answers-{model.name}", key, make)])
        found = (self.store.directory / f"answers-{name}.json" for name in ("teacher", self.delivered))
        both = [json.loads(path.read_text(encoding="utf-8"))["value"] for path in found]
        page = answers.side_by_side(*both, ("teacher", f"ternary ({self.delivered})"))
        (self.store.directory / "answers.md").write_text(page + "\n", encoding="utf-8")

    def _speed(self) -> None:
        model, sizes = self._final(), self.sizes.speed
        for threads in sorted({1, self.threads}):
            judge = self.teacher if threads == self.threads else None  # the text is the same with any threads
            key = {"model": model.sha256, "threads": threads, "sizes": asdict(sizes), "ways": list(speed_figures.WAYS),
                   "judge": judge.sha256 if judge else None}  # fmt: skip
            out = self.store.directory / f"decoding-{threads}-threads"
            make = partial(speed_figures.speed, model.path, judge.path if judge else None, out, threads, sizes)
            self.store.once(f"speed-{threads}-threads", key, make)

    def _tasks(self) -> None:
        had, missing = task_figures.loadable()
        self.store.put("tasks-missing", {"asked": [*had, *missing]}, missing, 0.0)
        for model in (self.teacher, self._final()):
            key = {"model": model.sha256, "tasks": had, "documents": self.sizes.documents}
            make = partial(task_figures.scores, words=had, limit=self.sizes.documents)
            self._each(model, [Job(f"tasks-{model.name}", key, make)] if had else [])

    def _final(self) -> Model:
        return next(model for model in self.models if model.name == self.delivered)


def found_models(work: Path, given: Sequence[str], names: Sequence[str] = STAGES) -> list[Model]:
    """Return the stages' models that are there, and ``given`` as NAME=PATH, each packed.

    Raises: SystemExit when there is none, or what is given is no ternary model.
    """
    paths = {name: work / name for name in names if (work / name / "config.json").is_file()}
    paths |= {name: path for name in names if name not in paths and (path := work / f"packed-{name}").is_dir()}
    for word in given:
        name, _, path = word.partition("=")
        if not path or not (Path(path) / "config.json").is_file():
            raise SystemExit(f"--model {word}: NAME=DIRECTORY is needed, of a checkpoint or a packed model")
        paths[name] = Path(path)
    if not paths:
        raise SystemExit(f"{work}: found none of {', '.join(names)}; make one first, or name it with --model")
    return [_model(work, name, path) for name, path in paths.items()]


def _model(work: Path, name: str, path: Path) -> Model:
    found = model_format(read_config(path))
    if found == "packed":
        return Model(name, path, None, model_hash(path))
    if found != "checkpoint":
        raise SystemExit(f"{path}: is no ternary model")
    packed = work / f"packed-{name}"
    if path != work / name or not packed.is_dir():
        packed = work / "figures" / "packed" / f"{name}-{model_hash(path)[:12]}"
        if not packed.is_dir():
            packed.parent.mkdir(parents=True, exist_ok=True)
            words = ("export", str(path), str(packed), "--embedding", EMBEDDING, "--no-verify")
            subprocess.run([*_WF, *words], check=True)
    return Model(name, packed, path, model_hash(packed))


def main() -> int:
    a = _options()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    work, started = a.work.resolve(), time.monotonic()
    models = found_models(work, a.model)
    names = [model.name for model in models]
    delivered = a.deliver or names[-1]
    if delivered not in names:
        raise SystemExit(f"--deliver {delivered}: found {', '.join(names)}")

    def say(name: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {name}", flush=True)

    store, sizes = FigureStore(work / "figures", say), QUICK if a.quick else FULL
    measured = Measurement(a.corpus or work / "corpus", a.teacher.resolve(), models, delivered, sizes, store, a.threads)
    if not measured.kinds:
        raise SystemExit(f"{measured.corpus}: found no held-KIND.jsonl")
    about = {
        "teacher": {"file": a.teacher.name, "sha256": measured.teacher.sha256}, "delivered": delivered,
        "kinds": measured.kinds, "quick": a.quick, "sizes": asdict(sizes), "threads": a.threads,
        "models": [{"name": m.name, "sha256": m.sha256, "path": str(m.path)} for m in models],
    }  # fmt: skip
    store.put("models", {}, about, 0.0)
    measured.run(a.figures.split(","))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--teacher", type=Path, required=True, help="a GGUF file or a directory")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--corpus", type=Path, help="default: WORK/corpus")
    parser.add_argument("--deliver", help="the model that is to be delivered; default: the last stage's")
    parser.add_argument("--figures", default=",".join(FIGURES), help=f"some of {', '.join(FIGURES)}")
    parser.add_argument("--quick", action="store_true", help="few tokens: minutes, and large errors")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    if unknown := set(options.figures.split(",")) - set(FIGURES):
        parser.error(f"--figures: {', '.join(sorted(unknown))}: choose from {', '.join(FIGURES)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
