"""Spaces: what a file may say, what its parameters become, what a trial's commands are made of.

Compared with the values written in the file, with hypothesis for points of the unit cube; no Ax, no database.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("yaml", reason="not checked: spaces of a sweep (the extra [sweep] is missing)")

from wrinklefree.errors import InputError
from wrinklefree.sweep.proposals import propose
from wrinklefree.sweep.space import CHOICE, FLOAT, INT, Parameter, Space, words_of
from wrinklefree.sweep.space_file import find_space, read_space, space_from
from wrinklefree.sweep.trial import Trial


def _plain(**changes: Any) -> dict[str, Any]:
    space = {
        "name": "toy",
        "constants": {"steps": 10},
        "objectives": {"one.loss": "minimize"},
        "parameters": {
            "lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
            "deep": {"type": "choice", "values": [True, False]},
            "kind": {"type": "choice", "values": ["a", "b"], "when": {"deep": True}},
            "depth": {"type": "int", "low": 1, "high": 3, "when": {"kind": "b"}},
        },
        "stages": [
            {
                "name": "one",
                "wf": ["train", "lr={lr}", "n={steps}", "kind={kind}", "depth={depth}"],
                "figures": {"loss": "figures.loss"},
            }
        ],
    }
    return {**space, **changes}


def _space(**changes: Any) -> Space:
    return space_from(_plain(**changes), "S.yaml")


def _with(parameter: str, **changes: Any) -> dict[str, Any]:
    parameters = _plain()["parameters"]
    parameters[parameter] = {**parameters.get(parameter, {}), **changes}
    return {"parameters": parameters}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"paramters": {}}, "did you mean 'parameters'"),
        (_with("lr", hihg=1), "parameters.lr: unknown key 'hihg'; did you mean 'high'"),
        (_with("lr", low=1.0), "low must be below high"),
        (_with("lr", low="much"), "low: found 'much', a finite number is needed"),
        (_with("lr", low=0.0), "with log: true it must be above 0"),
        (_with("lr", type="floot"), "did you mean 'float'"),
        (_with("depth", low=1.5), "an int needs whole numbers"),
        (_with("deep", values=[True]), "at least two values"),
        (_with("deep", values=[1, "a"]), "of one kind"),
        (_with("kind", when={"dep": True}), "did you mean 'deep'"),
        (_with("kind", when={"lr": 1e-3}), "only a choice can decide"),
        (_with("kind", when={"deep": "yes"}), "deep is 'yes', allowed is one of"),
        (_with("kind", when={"kind": "a"}), "depends on itself"),
        (_with("spare", type="int", low=1, high=2), "parameters.spare: no stage uses it"),
        (_with("out", type="int", low=1, high=2), "is none of out"),
        ({"objectives": {"one.los": "minimize"}}, "did you mean 'one.loss'"),
        ({"objectives": {"one.loss": "minimise"}}, "did you mean 'minimize'"),
        ({"objectives": {}}, "name at least one"),
        ({"constraints": ["one.loss < 3"]}, "allowed is STAGE.FIGURE <= NUMBER"),
        ({"constraints": ["one.bytes <= 3"]}, "unknown figure 'one.bytes'"),
        ({"constants": {"steps": 1, "left": 2}}, "constant left is used by no stage"),
        ({"stages": []}, "name a stage"),
        ({"method": "grid"}, "unknown value 'grid'"),
        ({"trials": 0}, "trials: found 0"),
        ({"trials": True}, "trials: found True"),
        ({"name": "a b"}, "name: found 'a b'"),
        ({"given": [{"lr": 1e-3}]}, r"given\[0\]: deep is missing"),
        ({"given": [{"lr": 1e-3, "deep": False, "kind": "a"}]}, "condition for it does not hold"),
        ({"given": [{"lr": 1.0, "deep": False}]}, "allowed is float 0.0001 to 0.01"),
        ({"limits": {"silent": 3}}, "did you mean 'silent_seconds'"),
        ({"stopping": {}}, "stopping: needs one objective, and curve"),
        ({"curve": {"stage": "two", "metric": "loss"}}, "unknown value 'two'"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        _space(**changes)
    assert str(caught.value).startswith("S.yaml")


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"wf": ["train", "lr={lrr}"]}, "unknown name 'lrr'; did you mean 'lr'"),
        ({"wf": ["train"], "run": ["x"]}, "give one of wf"),
        ({"wf": []}, "is empty"),
        ({"wf": "train"}, "a list is needed"),
        ({"wf": [{"lr": 1}]}, "in quotes"),
        ({"wf": ["train"], "name": "lr"}, "means something else"),
    ],
)
def test_a_stage_that_cannot_run_is_refused(stage: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _space(stages=[{"name": "one", "figures": {"loss": "loss"}, **stage}])


def test_a_file_is_yaml_whose_keys_stand_once(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(
        "name: toy\nobjectives: {s.y: maximize}\nconstraints: [s.y >= -1e3]\n"
        "parameters:\n  x: {type: float, low: 1e-3, high: 2e2}\n  c: {type: choice, values: [1e-3, 1]}\n"
        "stages: [{name: s, run: [prog, '{x}', '{c}'], figures: {y: y}}]\n"
    )
    space = read_space(path)
    assert (space.parameters[0].low, space.parameters[0].high) == (0.001, 200.0)
    assert space.parameters[1].values == (0.001, 1.0) and space.constraints[0].bound == -1000
    path.write_text("name: toy\nname: other\n")
    with pytest.raises(InputError, match="line 2: the key 'name' stands there twice"):
        read_space(path)
    path.write_text("name: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(InputError, match="is no YAML"):
        read_space(path)


def test_the_shipped_space_is_whole_and_its_constants_can_be_set() -> None:
    space = read_space(find_space("stage19_then_2"), {"steps": "7"})
    assert (space.initial, space.trials) == (12, 30)
    assert all("budget.max_steps=7" in stage.words for stage in space.stages)
    with pytest.raises(InputError, match="did you mean 'steps'"):
        read_space(find_space("stage19_then_2"), {"step": "7"})
    with pytest.raises(InputError, match="did you mean 'stage19_then_2'"):
        find_space("stage19_then2")


def test_a_command_has_no_word_of_an_inactive_parameter() -> None:
    space = _space()
    places = {"out": "O", "json": "J"}
    flat = words_of(space.stages[0], space, {"lr": 0.001, "deep": False}, places)
    assert flat == ["train", "lr=0.001", "n=10", "--out", "O", "--json", "J"]
    deep = words_of(space.stages[0], space, {"lr": 0.001, "deep": True, "kind": "b", "depth": 2}, places)
    assert deep[3:5] == ["kind=b", "depth=2"]


def test_the_fingerprint_is_of_what_decides_the_trials() -> None:
    one = _space()
    assert one.fingerprint == _space(name="other", trials=3, limits={"lost": 0}).fingerprint
    others = [{"seed": 1}, {"method": "random"}, {"constants": {"steps": 11}}, _with("lr", high=1e-1)]
    assert len({one.fingerprint, *(_space(**change).fingerprint for change in others)}) == 5


@given(st.floats(0, 1, exclude_max=True), st.booleans())
def test_every_point_gives_a_value_in_range(share: float, log: bool) -> None:
    for low, high in ((1, 4), (3, 1000)):
        for kind in (FLOAT, INT):
            parameter = Parameter("p", kind, low, high, log)
            assert parameter.check(parameter.at(share), "here") == parameter.at(share)
    choice = Parameter("p", CHOICE, values=("a", "b", "c"))
    assert choice.at(share) == ("a", "b", "c")[int(share * 3)]
    assert [Parameter("p", INT, 1, 4).at(x) for x in (0.0, 0.24, 0.26, 0.51, 0.76)] == [1, 1, 2, 3, 4]


@given(st.dictionaries(st.sampled_from(["lr", "deep", "kind", "depth"]), st.booleans()), st.sampled_from("ab"))
def test_a_condition_holds_only_where_its_own_parents_condition_holds(chosen: dict[str, bool], kind: str) -> None:
    values = {"lr": 1e-3, "deep": chosen.get("deep", False), "kind": kind, "depth": 2}
    active = _space().active(values)
    assert ("kind" in active) == values["deep"]
    assert ("depth" in active) == (values["deep"] and kind == "b")


def _proposed(space: Space, count: int) -> list[tuple[dict[str, Any], str]]:
    return list(propose(space, [], count, print))


@pytest.mark.parametrize("method", ["sobol", "random"])
def test_points_without_a_model_depend_on_seed_and_number_alone(method: str) -> None:
    space = _space(method=method, seed=3)
    all_at_once = _proposed(space, 12)
    assert all_at_once[:5] == _proposed(space, 5)
    later = propose(space, [Trial(i, values) for i, (values, _) in enumerate(all_at_once[:5])], 12, print)
    assert all_at_once[5:] == later
    assert len({str(values) for values, _ in all_at_once}) == 12
    assert _proposed(_space(method=method, seed=4), 12) != all_at_once
    for values, origin in all_at_once:
        assert space.check(values, "here") == values and origin == method


def test_quasi_random_points_fill_a_range_evenly() -> None:
    """The first 16 points of a Sobol sequence have one point in each sixteenth of every coordinate."""
    space = _space(method="sobol", **_with("lr", low=0.0 + 1, high=17, log=False))
    assert sorted(int(values["lr"]) for values, _ in _proposed(space, 16)) == list(range(1, 17))


def test_given_parameters_come_first_and_the_model_waits_for_results() -> None:
    space = _space(given=[{"lr": 1e-3, "deep": False}], initial=3, trials=9)
    first = propose(space, [], 9, print)
    assert [origin for _, origin in first] == ["given", "sobol", "sobol", "sobol"]
    assert first[0][0] == {"lr": 1e-3, "deep": False}
    said: list[str] = []
    failed = [Trial(i, values, "failed") for i, (values, _) in enumerate(first)]
    ((values, origin),) = propose(space, failed, 9, said.append)
    assert origin == "sobol" and values not in [trial.parameters for trial in failed]
    assert "too few for a model" in said[0]
    assert propose(space, failed, 4, print) == []
