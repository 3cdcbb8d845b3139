"""A recipe: what a stage of training is, typed. The schema and its defaults are the dataclasses of this module.

`train.compose` fills them from YAML; nothing behind that door sees an untyped configuration. Values that follow from
others are properties.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from wrinklefree.data.build import DataConfig
from wrinklefree.data.document import SourceConfig
from wrinklefree.data.mixing import Bounds
from wrinklefree.data.supervised import TaskConfig
from wrinklefree.errors import InputError
from wrinklefree.models.low_rank import LowRankConfig
from wrinklefree.objectives.base import CLEAN, LogitObjective
from wrinklefree.objectives.classification import Classification, ClassKD
from wrinklefree.objectives.curriculum import Curriculum, Interpolation, Phase, StrengthWarmup
from wrinklefree.objectives.manager import Term
from wrinklefree.objectives.noise import NOISED_VIEW, Diffusion
from wrinklefree.optim.build import OptimizerConfig
from wrinklefree.optim.schedules import plan_steps
from wrinklefree.quant.saliency import Annealing, KeptShare
from wrinklefree.quant.settling import check_margin
from wrinklefree.quant.ternary import TernarySpec
from wrinklefree.teachers.config import WHERE_ANSWERS_COME_FROM, TeacherConfig
from wrinklefree.train.compiled import CompileMode
from wrinklefree.train.metrics import TRACKERS
from wrinklefree.train.position import Budget, Schedule
from wrinklefree.train.remote import SyncRecipe


@dataclass(frozen=True)
class ModelRecipe:
    """``source``: a Hugging Face id, a directory, a GGUF file, or a converted checkpoint.

    ``granularity``, ``group_size``, ``quantizer`` and ``subln`` say how an original model is converted; None is
    absmean in groups of 64 and identity SubLN, and is what a converted checkpoint, which has its own, must be given.
    ``exclude``: linears that stay in full precision, by whole components of their paths (`models.exclusion`).
    ``margin``: latents of a converted checkpoint begin at least so many scales from where their codes change
    (`quant.settling`; 0: where they are). ``convert`` false trains an
    original model as it is, in full precision: a teacher for a task.
    ``teacher``: None is the original model itself, or the one a checkpoint names. ``dtype`` of student and teacher.
    ``compute``: the student's forward products (`quant.products`), but for the layers in ``compute_exclude`` and, in
    fp8, for those with fewer than ``fp8_min_size`` inputs or outputs; ``fp8_scaling``: a factor per row or per tensor.
    """

    source: str | None = None
    teacher: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    granularity: Literal["tensor", "row", "group"] | None = None
    group_size: int | None = None
    subln: Literal["identity", "ones", "none"] | None = None
    quantizer: Literal["absmean", "haar"] | None = None
    compute: Literal["float", "int8", "fp8"] = "float"
    compute_exclude: tuple[str, ...] = ()
    fp8_scaling: Literal["rowwise", "tensorwise"] = "rowwise"
    fp8_min_size: int = 512
    exclude: tuple[str, ...] = ()
    convert: bool = True
    margin: float = 0.0

    def __post_init__(self) -> None:
        check_margin(self.margin)

    @property
    def spec(self) -> TernarySpec:
        """Return the scales of a conversion."""
        return TernarySpec(self.granularity or "group", self.group_size or 64, self.quantizer or "absmean")


@dataclass(frozen=True)
class DataRecipe:
    """``sources`` by name; a curriculum's mixtures use these names. See `data.build.DataConfig`.

    ``workers`` threads tokenise and build batches ahead, ``prefetch`` each; the batches are the same with any number.
    """

    sources: Mapping[str, SourceConfig] = field(default_factory=lambda: {"python-docs": SourceConfig()})
    sequence_length: int = 512
    held_out_share: float = 0.1
    cache_dir: str | None = None
    workers: int = 0
    prefetch: int = 2

    def __post_init__(self) -> None:
        if self.workers < 0 or self.prefetch < 1:
            raise InputError(
                f"data: found workers={self.workers} and prefetch={self.prefetch}, needed are 0 or more and 1 or more"
            )

    def config(self, seed: int) -> DataConfig:
        """Return what the data package takes."""
        return DataConfig(
            tuple(self.sources.values()), self.sequence_length, seed, self.held_out_share, self.cache_dir,
            self.workers, self.prefetch,
        )  # fmt: skip


@dataclass(frozen=True)
class InfluenceRecipe:
    """How the mixture moves while training runs; ``every`` and ``warmup`` in optimizer steps.

    ``kind``: none; datainf (influence on a probe); distillation (the same from the gradients of few ``landmarks``);
    online (sources of high training loss). ``samples`` sequences of each source are looked at. Weights go the part
    ``lr`` of the way at an update, from scores of which a new one counts ``smoothing``; with online they follow its
    policy, whose rewards have ``memory``.
    ``parameters``: whose gradients are taken, norms or last_layer; ``projection`` values of a larger one are kept.
    ``probe``: sources of the probe, by name; without any, ``probe_share`` of each source's training documents is set
    aside for it. Its documents are never held-out ones. ``probe_sequences`` of it are looked at.
    """

    kind: Literal["none", "datainf", "distillation", "online"] = "none"
    every: int = 500
    warmup: int = 500
    lr: float = 0.15
    smoothing: float = 0.1
    samples: int = 32
    min_weight: float = 0.05
    max_weight: float = 0.60
    memory: float = 0.9
    landmarks: int = 64
    parameters: Literal["norms", "last_layer"] = "last_layer"
    projection: int = 2048
    probe: Mapping[str, SourceConfig] = field(default_factory=dict)
    probe_share: float = 0.02
    probe_sequences: int = 64

    def __post_init__(self) -> None:
        for name in ("every", "samples", "landmarks", "projection", "probe_sequences"):
            if getattr(self, name) < 1:
                raise InputError(f"influence.{name}: found {getattr(self, name)}, it must be at least 1")
        for name in ("lr", "smoothing", "memory"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"influence.{name}: found {getattr(self, name)}, allowed is 0 to 1")
        _ = self.bounds

    @property
    def bounds(self) -> Bounds:
        """Return the smallest and the largest share of a source."""
        return Bounds(self.min_weight, self.max_weight)

    @property
    def needs_probe(self) -> bool:
        return self.kind in ("datainf", "distillation")


@dataclass(frozen=True)
class BatchRecipe:
    """Sequences: ``micro_batch`` in one forward of one process, ``accumulation`` forwards in one step.

    ``find``: divide their product anew, into the largest micro-batch that fits into ``memory_gib`` for each process
    (None: most of what is free) and as many forwards as that leaves; see `train.batch_finder`.
    """

    micro_batch: int = 8
    accumulation: int = 1
    find: bool = False
    memory_gib: float | None = None


@dataclass(frozen=True)
class BudgetRecipe:
    """Training ends at the first that is reached; at least one must be set. ``max_steps`` 0 only converts."""

    total_tokens: int | None = None
    max_steps: int | None = None
    max_seconds: float | None = None


@dataclass(frozen=True)
class StrengthRecipe:
    """The warm-up of the quantisation strength lambda, over ``warmup_tokens`` or ``warmup_ratio`` of the budget."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    warmup_tokens: int | None = None
    warmup_ratio: float = 0.0
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True)
class SaliencyRecipe:
    """Columns that stay in full precision for a while; ``kind``: how their share goes from ``initial`` to ``final``.

    ``initial`` is held for the share ``hold`` of the budget, ``final`` is reached at ``end``; a model is exported with
    0. ``score``: weight is max|w| of a column, activation is that times the mean magnitude of its inputs. Columns are
    chosen every ``update_interval`` steps from an average score with the memory ``memory``.
    """

    kind: Literal["none", "linear", "cosine"] = "none"
    score: Literal["weight", "activation"] = "weight"
    initial: float = 0.1
    final: float = 0.0
    hold: float = 0.0
    end: float = 0.8
    memory: float = 0.99
    update_interval: int = 10

    @property
    def share(self) -> KeptShare:
        """Return the share of kept columns as a function of progress."""
        kind: Annealing = "cosine" if self.kind == "cosine" else "linear"
        return KeptShare(self.initial, self.final, self.hold, self.end, kind)


@dataclass(frozen=True)
class CurriculumRecipe:
    """See `objectives.curriculum`."""

    interpolation: Interpolation = "step"
    phases: tuple[Phase, ...] = ()


@dataclass(frozen=True)
class GuardRecipe:
    """``clip_norm`` None leaves gradients alone; ``max_nonfinite`` skipped steps in a row end the run."""

    clip_norm: float | None = 1.0
    max_nonfinite: int = 5


@dataclass(frozen=True)
class CheckpointRecipe:
    """The training state: written every ``save_every`` steps and at the end; the newest ``keep_last`` are kept."""

    save_every: int | None = None
    keep_last: int = 2


@dataclass(frozen=True)
class LogRecipe:
    """``ternary_every``: steps between looks at zeros and flips.

    ``tracker``: none, trackio (a local database), tensorboard (local files) or wandb, which is also used with any other
    whenever WANDB_API_KEY is set.

    ``group``: runs that belong together, for trackio and W&B; ``tags``: words to find a run by, for W&B.

    ``gradient_share_every``: steps between measurements of every objective's share of the gradient
    (`objectives.balance`); None makes none.
    """

    log_every: int = 1
    ternary_every: int = 50
    gradient_share_every: int | None = None
    tracker: str = "none"
    project: str = "wrinklefree"
    group: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class DeviceRecipe:
    """Handed to Lightning Fabric: ``accelerator`` cpu, cuda or auto; ``devices`` processes on each of
    ``nodes`` machines (several are started by torchrun).

    ``strategy``: ddp keeps the student whole in every process, fsdp divides parameters, gradients and optimizer state
    among them; auto is ddp.
    ``precision`` bf16-mixed computes the products of a float32 student in bfloat16.
    ``compile``: ``fused``, or the mode of torch.compile, for the decoder layers. ``gradient_checkpointing``: keep the
    layers' inputs only and compute them twice. See `train.compiled`.
    """

    accelerator: str = "auto"
    devices: int = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    compile: CompileMode = "none"
    gradient_checkpointing: bool = False
    nodes: int = 1

    def __post_init__(self) -> None:
        if self.compile != "none" and self.strategy == "fsdp" and self.processes > 1:
            raise InputError("device.compile: has not been tried on sharded layers; use strategy=ddp or compile=none")

    @property
    def holds_codes(self) -> bool:
        """Whether the micro-batches of a step share rounded weights; layers of torch.compile round their own."""
        return self.compile in ("none", "fused")

    @property
    def processes(self) -> int:
        """Processes of the run, over all machines."""
        return self.devices * self.nodes


# What may differ between the two halves of an interrupted run.
_NOT_IDENTITY = ("out", "budget", "checkpoint", "sync", "log", "device")
_DATA_NOT_IDENTITY = ("cache_dir", "workers", "prefetch")


@dataclass(frozen=True)
class Recipe:
    """A stage of training, complete. ``objectives``: by name, each with its settings and weight.

    ``diffusion``: how the view of the batch is noised, for the objectives that work on it.
    ``task``: the data are labelled examples, one in each row; None is running text.
    """

    stage: str
    model: ModelRecipe = field(default_factory=ModelRecipe)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    data: DataRecipe = field(default_factory=DataRecipe)
    influence: InfluenceRecipe = field(default_factory=InfluenceRecipe)
    task: TaskConfig | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: Schedule = field(default_factory=Schedule)
    strength: StrengthRecipe = field(default_factory=StrengthRecipe)
    saliency: SaliencyRecipe = field(default_factory=SaliencyRecipe)
    low_rank: LowRankConfig = field(default_factory=LowRankConfig)
    objectives: Mapping[str, Term] = field(default_factory=dict)
    diffusion: Diffusion = field(default_factory=Diffusion)
    curriculum: CurriculumRecipe = field(default_factory=CurriculumRecipe)
    batch: BatchRecipe = field(default_factory=BatchRecipe)
    budget: BudgetRecipe = field(default_factory=BudgetRecipe)
    guard: GuardRecipe = field(default_factory=GuardRecipe)
    checkpoint: CheckpointRecipe = field(default_factory=CheckpointRecipe)
    sync: SyncRecipe = field(default_factory=SyncRecipe)
    log: LogRecipe = field(default_factory=LogRecipe)
    device: DeviceRecipe = field(default_factory=DeviceRecipe)
    seed: int = 0
    out: str | None = None

    def __post_init__(self) -> None:
        for name, value in (
            ("batch.micro_batch", self.batch.micro_batch),
            ("batch.accumulation", self.batch.accumulation),
            ("data.sequence_length", self.data.sequence_length),
            ("device.devices", self.device.devices),
            ("device.nodes", self.device.nodes),
            ("log.log_every", self.log.log_every),
            ("guard.max_nonfinite", self.guard.max_nonfinite),
            ("checkpoint.keep_last", self.checkpoint.keep_last),
            ("saliency.update_interval", self.saliency.update_interval),
            ("sync.keep_last", self.sync.keep_last),
        ):
            if value < 1:
                raise InputError(f"{name}: found {value}, it must be at least 1")
        if self.batch.memory_gib is not None and self.batch.memory_gib <= 0.0:
            raise InputError(f"batch.memory_gib: found {self.batch.memory_gib}, it must be above 0")
        if self.batch.find and self.device.strategy == "fsdp" and self.device.processes > 1:
            raise InputError(
                "batch.find: with device.strategy=fsdp a process that runs out of memory would leave the others "
                "waiting in the middle of a layer; set batch.micro_batch, or use ddp"
            )
        if self.log.tracker not in TRACKERS:
            raise InputError(f"log.tracker: found {self.log.tracker!r}, allowed is {' or '.join(TRACKERS)}")
        _ = (
            self.teacher_source,
            self.run_budget,
            self.run_curriculum,
            self.run_warmup,
            self.model.spec,
            self.saliency.share,
        )  # their checks, now
        check_task(self.task, self.objectives)
        if self.task is not None and self.influence.kind != "none":
            raise InputError("influence.kind: a task has one source of examples; there is no mixture to move")
        if self.task is not None and self.low_rank.init == "closed_form":
            raise InputError("low_rank.init=closed_form: is measured on running text; calibrate before the task")
        if self.task is not None and self.low_rank.init != "none" and self.low_rank.trainable == "factors":
            raise InputError("low_rank.trainable=factors: a task has a head to learn; use low_rank.trainable=all")
        if self.diffuses and not self.model.convert:
            raise InputError("model.convert: false is for a teacher; a diffusion model must be converted")

    @property
    def taught(self) -> bool:
        """Return whether an objective needs a teacher."""
        return any(term.objective.needs.teacher for term in self.objectives.values())

    @property
    def teacher_source(self) -> str | None:
        """Return the local teacher's model, when the recipe names it.

        Raises: InputError when it names two.
        """
        if self.teacher.source and self.model.teacher and self.teacher.source != self.model.teacher:
            raise InputError(
                f"teacher.source: found {self.teacher.source!r} and model.teacher={self.model.teacher!r}; set one"
            )
        return self.teacher.source or self.model.teacher

    @property
    def step_tokens(self) -> int:
        """Tokens of one optimizer step: micro-batch x accumulation x processes x sequence length."""
        return self.batch.micro_batch * self.batch.accumulation * self.device.processes * self.data.sequence_length

    @property
    def run_budget(self) -> Budget:
        """Return the budget in seconds and in tokens, rounded down to whole steps (`optim.schedules.plan_steps`)."""
        limits = self.budget
        if limits.total_tokens is None and limits.max_steps is None:
            return Budget(None, limits.max_seconds)
        if limits.max_steps == 0:
            return Budget(0, limits.max_seconds)
        batch, sequence = self.batch, self.data.sequence_length
        plan = plan_steps(
            limits.total_tokens,
            limits.max_steps,
            batch.micro_batch,
            sequence,
            batch.accumulation,
            self.device.processes,
        )
        return Budget(plan.total_tokens, limits.max_seconds)

    @property
    def data_config(self) -> DataConfig:
        """Return what the data package takes: the training data, and the probe when something needs one."""
        config = self.data.config(self.seed)
        if not self.influence.needs_probe or len(self.data.sources) < 2:
            return config
        probe = tuple(self.influence.probe.values())
        return replace(config, probe=probe, probe_share=0.0 if probe else self.influence.probe_share)

    @property
    def steps(self) -> int | None:
        """Steps of the budget; None when only time bounds the run."""
        tokens = self.run_budget.tokens
        return None if tokens is None else tokens // self.step_tokens

    @property
    def run_curriculum(self) -> Curriculum:
        """Return the curriculum over the objectives' weights."""
        base = {name: term.weight for name, term in self.objectives.items()}
        for phase in self.curriculum.phases:
            if base and not any({**base, **phase.objectives}.values()):
                raise InputError(
                    f"curriculum phase {phase.name!r}: every objective has weight 0 there; there is nothing to learn"
                )
            for name in phase.data:
                if name not in self.data.sources:
                    raise InputError(
                        f"curriculum phase {phase.name!r}: {name!r} is no data source (data.sources has "
                        f"{', '.join(self.data.sources)})"
                    )
        return Curriculum(base, self.curriculum.phases, self.curriculum.interpolation)

    @property
    def positions_per_token(self) -> int:
        """Positions that the student computes for each token of the data, over all views of a batch, at the least."""
        views = {term.objective.needs.view for term in self.objectives.values()}
        return (CLEAN in views) + (self.diffusion.positions_per_token if NOISED_VIEW in views else 0)

    @property
    def diffuses(self) -> bool:
        """Whether an objective works on the noised view: the student then becomes a diffusion model."""
        return any(term.objective.needs.view == NOISED_VIEW for term in self.objectives.values())

    @property
    def run_warmup(self) -> StrengthWarmup:
        """Return the strength's warm-up as a share of the budget."""
        ratio, tokens = self.strength.warmup_ratio, self.run_budget.tokens
        if self.strength.warmup_tokens is not None:
            if tokens is None:
                raise InputError("strength.warmup_tokens: only time bounds this run; give strength.warmup_ratio")
            ratio = min(self.strength.warmup_tokens / max(tokens, 1), 1.0)
        return StrengthWarmup(self.strength.kind, ratio, self.strength.start, self.strength.end)

    def resolved(self) -> dict[str, Any]:
        """Return every value, as YAML would give it: composing it again gives this recipe."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        values["objectives"] = {
            name: {"weight": term.pop("weight"), **term.pop("objective"), **_if_any(term)}
            for name, term in values["objectives"].items()
        }
        return values

    @property
    def identity(self) -> str:
        """A hash of all that decides what is learned; a state resumes only under the same one."""
        values = {name: value for name, value in self.resolved().items() if name not in _NOT_IDENTITY}
        # How a step's sequences are divided over forwards and processes is a matter of memory, not of what is learned
        # (but for a balanced weight, which is measured on the step's first forward).
        values["batch"] = self.batch.micro_batch * self.batch.accumulation * self.device.processes
        values["data"] = {name: value for name, value in values["data"].items() if name not in _DATA_NOT_IDENTITY}
        values["teacher"] = {k: v for k, v in values["teacher"].items() if k not in WHERE_ANSWERS_COME_FROM}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def check_task(task: TaskConfig | None, objectives: Mapping[str, Term]) -> None:
    """Raise InputError for an objective that has nothing to learn from in such data."""
    classifies = task is not None and task.kind == "classification"
    for name, term in objectives.items():
        if isinstance(term.objective, Classification | ClassKD) and not classifies:
            raise InputError(f"objectives.{name}: needs examples with a class; set task.kind=classification")
        if isinstance(term.objective, LogitObjective) and classifies:
            raise InputError(f"objectives.{name}: predicts tokens, a classifier predicts none; use classification")


def _if_any(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
