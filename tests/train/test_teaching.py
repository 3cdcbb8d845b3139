"""Teachers in whole runs: traps T15, T21 and T24; training from a server or a cache is training from the model.

Everything runs through `train.stage.train` with recipes, on a toy model with its own small tokenizer.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from train_toys import ToyStream, toy_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

sys.path.append(str(Path(__file__).parents[1] / "teachers"))

from stand_in_server import StandIn

from wrinklefree.cli.main import main
from wrinklefree.errors import InputError
from wrinklefree.models.forward import forward
from wrinklefree.objectives import Layerwise, LogitsKD, NextToken
from wrinklefree.objectives.curriculum import Curriculum, Phase
from wrinklefree.objectives.manager import ObjectiveManager, Term
from wrinklefree.teachers.local import LocalTeacher
from wrinklefree.train.compose import compose
from wrinklefree.train.loop import run
from wrinklefree.train.plan import dry_run
from wrinklefree.train.position import Budget, Position, Schedule
from wrinklefree.train.session import LoopConfig
from wrinklefree.train.stage import StageResult, train

SMALL = [
    "data.sequence_length=32", "batch.micro_batch=2", "batch.accumulation=2", "budget.total_tokens=null",
    "device.accelerator=cpu", "log.tracker=none", "optimizer=adamw", "optimizer.lr=1e-3",
]  # fmt: skip


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("toy")
    lines = [f"the number {a} and the number {b} make {a + b} in all\n" for a in range(30) for b in range(3)]
    (directory / "texts").mkdir()
    for i in range(15):
        (directory / "texts" / f"{i:02}.txt").write_text("".join(lines[i * 6 : i * 6 + 6]), encoding="utf-8")
    raw = Tokenizer(models.BPE(unk_token=None))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<eos>"], initial_alphabet=alphabet)
    raw.train_from_iterator(lines, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>")
    tokenizer.save_pretrained(directory / "model")
    toy_model(1, vocab_size=len(tokenizer), initializer_range=0.05).save_pretrained(directory / "model")  # type: ignore[operator]
    return directory


@pytest.fixture
def server(toy: Path) -> Iterator[StandIn]:
    with StandIn(AutoModelForCausalLM.from_pretrained(toy / "model")) as running:
        yield running


def arguments(toy: Path, *more: str, steps: int = 4, recipe: str = "logits_only") -> list[str]:
    given = [f"training={recipe}", f"model={toy / 'model'}", f"data={toy / 'texts'}"]
    return [*given, *SMALL, f"budget.max_steps={steps}", *more]


def remote(server: StandIn, *more: str) -> list[str]:
    return ["teacher.kind=remote", f"teacher.url={server.url}", "teacher.model=toy", "teacher.top_k=6",
            "teacher.retries=0", *more]  # fmt: skip


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def equal(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_cache_trains_exactly_as_the_teacher_that_filled_it(toy: Path, tmp_path: Path) -> None:
    """15 texts are few sequences: several epochs. First filled by the live teacher, then read with nobody to ask."""
    kept = ["teacher.top_k=6", f"teacher.cache_dir={tmp_path / 'cache'}"]
    train(compose(arguments(toy, "teacher.top_k=6", steps=6)), out=tmp_path / "live")
    train(compose(arguments(toy, *kept, steps=6)), out=tmp_path / "filling")
    shards = list((tmp_path / "cache").glob("*/shard-*"))
    assert shards
    train(compose(arguments(toy, *kept, "teacher.kind=cached", steps=6)), out=tmp_path / "cached")
    assert equal(tmp_path / "live", tmp_path / "filling") and equal(tmp_path / "live", tmp_path / "cached")
    before = {shard: shard.stat().st_mtime_ns for shard in shards}
    train(compose(arguments(toy, *kept, steps=6)), out=tmp_path / "again")
    assert {s: s.stat().st_mtime_ns for s in (tmp_path / "cache").glob("*/shard-*")} == before
    with pytest.raises(InputError, match=r"holds no answers for .*top_k 5"):
        train(compose(arguments(toy, *kept, "teacher.kind=cached", "teacher.top_k=5")), out=tmp_path / "other")
    with pytest.raises(InputError, match="does not hold"):
        more = [*kept, "teacher.kind=cached", f"data.sources.local.path={tmp_path / 'texts'}"]
        _other_texts(tmp_path / "texts")
        _same_name(tmp_path / "cache", compose(arguments(toy, *more)), toy)
        train(compose(arguments(toy, *more)), out=tmp_path / "new")


def _other_texts(directory: Path) -> None:
    directory.mkdir()
    for i in range(6):
        (directory / f"{i}.txt").write_text(f"other words, number {i}, " * 30, encoding="utf-8")


def _same_name(cache: Path, recipe: Any, toy: Path) -> None:
    """Run one step live, so that the cache knows these texts' name, then change the texts under it."""
    live = [a for a in arguments(toy, "teacher.top_k=6", f"teacher.cache_dir={cache}", steps=1)]
    path = recipe.data.sources["local"].path
    train(compose([*live, f"data.sources.local.path={path}"]), out=cache.parent / "one-step")
    for file in Path(path).glob("*.txt"):
        file.write_text(file.read_text(encoding="utf-8").replace("other", "changed"), encoding="utf-8")


def test_a_server_trains_as_the_model_behind_it(toy: Path, tmp_path: Path, server: StandIn) -> None:
    """Answers differ by float32 rounding (a document alone, or packed), so weights do by what 4 steps make of it."""
    train(compose(arguments(toy, "teacher.top_k=6")), out=tmp_path / "local")
    train(compose(arguments(toy, *remote(server))), out=tmp_path / "remote")
    moved = 0.0
    start = AutoModelForCausalLM.from_pretrained(toy / "model").state_dict()
    ours, theirs = weights(tmp_path / "local"), weights(tmp_path / "remote")
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=0, atol=2e-4)
        moved = max(moved, float((value - start[name]).abs().max()) if name in start else 0.0)
    assert moved > 1e-3


def test_a_server_that_dies_saves_the_run_and_the_same_command_resumes(
    toy: Path, tmp_path: Path, server: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(compose(arguments(toy, *remote(server), steps=6)), out=tmp_path / "whole")
    assert whole.finished
    server.answered, server.dies_after = 0, 7  # two requests a step, and two ahead
    assert main(["train", *arguments(toy, *remote(server), steps=6), "--out", str(tmp_path / "halves")]) == 1
    said = capsys.readouterr().err
    assert "stopped after step 3: the teacher at" in said and "run the same command to resume" in said
    assert "The state is saved in" in said and "Traceback" not in said
    server.dies_after = None  # started again, at another port it would be another teacher.url
    resumed = train(compose(arguments(toy, *remote(server, "teacher.ahead=1"), steps=6)), out=tmp_path / "halves")
    assert resumed.finished and resumed.result.position.step == 6
    assert equal(tmp_path / "whole", tmp_path / "halves")


def test_a_servers_answers_are_kept_too(toy: Path, tmp_path: Path, server: StandIn) -> None:
    kept = remote(server, f"teacher.cache_dir={tmp_path / 'cache'}")
    train(compose(arguments(toy, *kept, steps=6)), out=tmp_path / "filling")
    asked = len(server.requests)
    train(compose(arguments(toy, *kept, steps=6)), out=tmp_path / "again")
    assert len(server.requests) <= asked + 2 and equal(tmp_path / "filling", tmp_path / "again")


@pytest.mark.parametrize("more", [["teacher.weights=int8"], ["teacher.weights=nf4"], ["teacher.dtype=bfloat16"]])
def test_a_teacher_in_fewer_bits_teaches(toy: Path, tmp_path: Path, more: list[str]) -> None:
    figures: list[Mapping[str, float]] = []
    recipe = compose(arguments(toy, *more, "teacher.attention=eager", steps=2, recipe="quick_distill"))
    train(recipe, out=tmp_path / "out", on_step=lambda position, seen: figures.append(seen))
    assert len(figures) == 2 and all(0.0 < f["logits_kd/value"] < 5.0 for f in figures)
    full = dry_run(compose(arguments(toy, recipe="quick_distill"))).memory_gib["teacher"]
    assert dry_run(recipe).memory_gib["teacher"] < 0.6 * full


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["teacher.kind=remote"], r"set teacher\.url"),
        (["teacher.kind=cached"], r"set teacher\.cache_dir"),
        (["teacher.cache_dir=somewhere"], r"set teacher\.top_k"),
        (["teacher.url=http://a/v1"], r"only teacher\.kind=remote reads it"),
        (["teacher.retries=3"], "only teacher.kind=remote"),
        (["teacher.top_k=0"], "must be at least 1"),
        (["teacher.kind=remot"], "did you mean 'remote'"),
        (["teacher.source=a", "model.teacher=b"], "set one"),
    ],
)
def test_contradictions_are_refused(toy: Path, more: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compose(arguments(toy, *more))


def test_objectives_that_need_more_than_k_tokens_are_refused_at_the_start(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"objectives\.layerwise: needs the teacher's states"):
        train(compose(arguments(toy, "teacher.top_k=5", recipe="stage1_9_layerwise")), out=tmp_path / "a")
    with pytest.raises(InputError, match="no known mass at a temperature other than 1"):
        train(compose(arguments(toy, "teacher.top_k=5", "objectives.logits_kd.temperature=2")), out=tmp_path / "b")


def test_where_answers_come_from_is_not_what_is_learned(toy: Path) -> None:
    one = compose(arguments(toy, "teacher.top_k=5"))
    assert one.identity == compose(arguments(toy, "teacher.top_k=5", "teacher.cache_dir=x")).identity
    assert one.identity != compose(arguments(toy, "teacher.top_k=4")).identity
    assert one.identity != compose(arguments(toy, "teacher.top_k=5", "teacher.weights=int8")).identity


def test_t15_a_teacher_without_anything_to_teach_is_refused_and_a_faint_term_is_reported(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(compose(arguments(toy, steps=1)), out=tmp_path / "ternary")
    same = [a for a in arguments(toy) if not a.startswith("model=")] + [f"model={tmp_path / 'ternary'}"]
    with pytest.raises(InputError, match="its ternary weights are the student's own"):
        train(compose([*same, f"teacher.source={tmp_path / 'ternary'}"]), out=tmp_path / "a")
    capsys.readouterr()
    faint = ["objectives.layerwise.weight=1e-6", "log.gradient_share_every=1", "curriculum.phases=[]"]
    seen: list[Mapping[str, float]] = []
    recipe = compose(arguments(toy, *faint, steps=1, recipe="stage1_9_layerwise"))
    train(recipe, out=tmp_path / "b", on_step=lambda position, figures: seen.append(figures))
    assert 0.0 < seen[0]["layerwise/gradient_share"] < 0.01
    assert "objective layerwise is 0.00% of the loss" in "".join(capsys.readouterr())


def test_t21_the_teacher_is_in_memory_only_while_its_weight_is_above_0() -> None:
    """Weight 0, then above, then 0 for good: absent, present, absent; tokens of a step never change."""
    made: list[weakref.ref[nn.Module]] = []

    def load() -> nn.Module:
        model = toy_model(2)
        made.append(weakref.ref(model))
        return model

    student = toy_model(1, ternary=True)
    manager = ObjectiveManager({"next_token": Term(NextToken()), "logits_kd": Term(LogitsKD(), 0.0)})
    phases = [Phase("a", 0.25, {"logits_kd": 0.0}), Phase("b", 0.55, {"logits_kd": 1.0}), Phase("c", 1.0)]
    seen: list[tuple[bool, int, int]] = []

    def watch(position: Position, figures: Mapping[str, float]) -> None:
        alive = bool(made) and made[0]() is not None
        assert alive == teacher.loaded
        seen.append((alive, position.tokens, len(made)))

    teacher = LocalTeacher(load, forward, student)
    run(
        student, ToyStream(), torch.optim.AdamW(student.parameters(), lr=1e-3), manager,
        config=LoopConfig(micro_batch=2, accumulation=2), budget=Budget(tokens=10 * 96), teacher=teacher,
        curriculum=Curriculum(manager.base_weights, phases, "step"), schedule=Schedule("constant", warmup_ratio=0.0),
        on_step=watch,
    )  # fmt: skip
    assert [alive for alive, _, _ in seen] == [False] * 3 + [True] * 3 + [False] * 4
    assert [tokens for _, tokens, _ in seen] == [96 * (i + 1) for i in range(10)] and seen[-1][2] == 1


def test_t24_cross_entropy_is_reported_beside_hidden_states(toy: Path, tmp_path: Path) -> None:
    """With hidden states alone the loss falls; what the model can predict is in the log all the same."""
    seen: list[Mapping[str, float]] = []
    manager = ObjectiveManager({"layerwise": Term(Layerwise())})
    student, teacher = toy_model(1, ternary=True), toy_model(2)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    run(
        student, ToyStream(), optimizer, manager, config=LoopConfig(micro_batch=4), budget=Budget(tokens=6 * 96),
        teacher=LocalTeacher(lambda: teacher, forward), schedule=Schedule("constant", warmup_ratio=0.0),
        on_step=lambda position, figures: seen.append(figures),
    )  # fmt: skip
    assert seen[-1]["layerwise/value"] < seen[0]["layerwise/value"]
    assert all(figures["next_token/ce"] > 0.0 and figures["next_token/weight"] == 0.0 for figures in seen)
    assert seen[0]["loss"] == pytest.approx(seen[0]["layerwise/value"])


def test_balance_and_shares_resume(toy: Path, tmp_path: Path) -> None:
    """A held share, stopped and resumed, is the uninterrupted run; its factor is in the state."""
    held = ["objectives.logits_kd.balance.kind=share", "objectives.logits_kd.balance.target=0.3",
            "objectives.logits_kd.balance.every=2", "log.gradient_share_every=3", "objectives.layerwise.weight=0.5",
            "curriculum.phases=[]", "checkpoint.save_every=3"]  # fmt: skip

    def go(out: Path, steps: int) -> StageResult:
        return train(compose(arguments(toy, *held, steps=steps, recipe="stage1_9_layerwise")), out=out)

    def stop(position: Position, figures: Mapping[str, float]) -> None:
        if position.step == 4:
            raise KeyboardInterrupt

    go(tmp_path / "whole", 6)
    with pytest.raises(KeyboardInterrupt):
        recipe = compose(arguments(toy, *held, steps=6, recipe="stage1_9_layerwise"))
        train(recipe, out=tmp_path / "halves", on_step=stop)
    go(tmp_path / "halves", 6)
    assert equal(tmp_path / "whole", tmp_path / "halves")
