"""SkyPilot itself reads our tasks: schema, resources, services, managed jobs. Offline; no cloud is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

sky = pytest.importorskip("sky", reason="SkyPilot is missing: no task was read by it")
from sky.skylet import constants  # noqa: E402
from sky.utils import dag_utils  # noqa: E402

NAMES = ("one", "spot", "machines", "cpu", "sweep", "serve")
DEPLOYED = Path(__file__).parents[3] / "deploy" / "skypilot" / "serve.yaml"


def read(requests: Path, name: str) -> Any:
    given = json.loads((requests / f"{name}.json").read_text())
    secrets = [(secret, "value") for secret in given.get("secrets", {})]
    return sky.Task.from_yaml_config(given, secrets_overrides=secrets)


@pytest.mark.parametrize("name", NAMES)
def test_skypilot_reads_the_task_as_it_was_meant(name: str, requests: Path) -> None:
    given, task = json.loads((requests / f"{name}.json").read_text()), read(requests, name)
    if task.service is None:  # whether a port can be opened is asked of the clouds one has
        task.validate(skip_file_mounts=True)
    (resources,) = task.resources
    wanted = given["resources"]
    assert (task.name, task.num_nodes) == (name, given.get("num_nodes", 1))
    assert task.run == given["run"] and task.setup == given["setup"]
    assert resources.disk_size == wanted["disk_size"] and resources.use_spot == wanted.get("use_spot", False)
    found = resources.accelerators or {}
    assert [f"{gpu}:{int(count)}" for gpu, count in found.items()] == [
        word for word in [wanted.get("accelerators")] if word
    ]
    assert {k: v for k, v in task.envs.items() if k in given.get("envs", {})} == given.get("envs", {})
    assert task.secrets.keys() == given.get("secrets", {}).keys()


def test_the_price_of_a_machine_and_the_place_are_asked_for(requests: Path) -> None:
    (spot,), (one,) = read(requests, "spot").resources, read(requests, "one").resources
    wanted = json.loads((requests / "spot.json").read_text())["resources"]
    assert spot.to_yaml_config()["max_hourly_cost"] == wanted["max_hourly_cost"] > 0
    assert str(one.cloud).lower() == "gcp"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "serve"])
def test_a_managed_job_is_made_of_the_file(name: str, requests: Path) -> None:
    """The way `sky jobs launch FILE --secret ...` goes, up to the point where a cloud is asked."""
    secrets = [(secret, "value") for secret in json.loads((requests / f"{name}.json").read_text()).get("secrets", {})]
    dag = dag_utils.load_chain_dag_from_yaml(str(requests / f"{name}.yaml"), None, secrets)
    dag_utils.maybe_infer_and_fill_dag_and_task_names(dag)
    dag_utils.fill_default_config_in_dag_for_job_launch(dag)
    (task,) = dag.tasks
    assert all(resources.job_recovery is not None for resources in task.resources), "recovered when taken away"


def test_a_service_is_what_was_asked_for(requests: Path) -> None:
    service = read(requests, "serve").service
    assert (service.min_replicas, service.max_replicas, service.target_qps_per_replica) == (2, 4, 2.0)
    assert service.readiness_path == "/health/ready" and service.initial_delay_seconds == 600


def test_the_deployed_service_is_read_too() -> None:
    (task,) = dag_utils.load_chain_dag_from_yaml(str(DEPLOYED), None, [("WRINKLEFREE_API_KEY", "value")]).tasks
    assert task.service.readiness_path == "/health/ready"


def test_a_misspelt_key_is_refused(requests: Path) -> None:
    """So that the tests above say something."""
    given = json.loads((requests / "cpu.json").read_text())
    given["resources"]["disc_size"] = 100
    with pytest.raises(Exception, match="disc_size"):
        sky.Task.from_yaml_config(given)


def test_the_clouds_we_take_are_skypilots(requests: Path) -> None:
    ours = set(json.loads((requests / "clouds.json").read_text()))
    assert ours == {*constants.ALL_CLOUDS, "k8s"}
