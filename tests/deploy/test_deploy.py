"""The files for operators against what they stand on: options, routes, variables and metrics that really exist."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "server"))
sys.path.append(str(Path(__file__).parents[1] / "artifact"))
sys.path.append(str(Path(__file__).parents[1] / "engine"))
sys.path.append(str(Path(__file__).parents[1] / "export"))
from running_server import RunningServer, chat_toy
from typer.main import get_command

from wrinklefree.cli import serve
from wrinklefree.server.settings import ServerSettings

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = DEPLOY / "systemd" / "wrinklefree.service"
DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
SKYPILOT = DEPLOY / "skypilot" / "serve.yaml"
yaml = pytest.importorskip("yaml", reason="PyYAML is missing: the YAML files of deploy/ are not checked")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(chat_toy(tmp_path_factory.mktemp("deploy") / "toy")) as running:
        yield running


@pytest.fixture(scope="module")
def options() -> set[str]:
    import typer

    app = typer.Typer()
    app.command()(serve.run)
    return {flag for parameter in get_command(app).params for flag in parameter.opts}


@pytest.fixture(scope="module")
def metrics(server: RunningServer) -> set[str]:
    """The names that may be asked for: of histograms their parts."""
    found = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", server.client.get("/metrics").text, re.MULTILINE):
        found |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    return found


def _unit() -> dict[str, list[str]]:
    parser = configparser.RawConfigParser(strict=False, dict_type=_Many)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return {key: value.split("\n") for key, value in parser.items("Service")}


class _Many(dict[str, Any]):
    """Keys that come again add a line: a unit may say one thing several times."""

    def __setitem__(self, key: str, value: Any) -> None:
        if isinstance(value, list) and isinstance(self.get(key), list):
            self[key].extend(value)
        else:
            super().__setitem__(key, value)


def _flags(command: str) -> set[str]:
    return {word.split("=")[0] for word in shlex.split(command) if word.startswith("--")}


def test_the_unit_calls_wf_serve_with_options_that_exist(options: set[str]) -> None:
    command = " ".join(_unit()["ExecStart"]).replace("\\", " ")
    assert re.match(r"\S+/wf serve \S+ --", command) and _flags(command) <= options
    assert "--api-key-file %d/api-keys" in command and _unit()["LoadCredential"][0].startswith("api-keys:")
    assert "--host 127.0.0.1" in command


def test_the_unit_gives_answers_the_time_to_finish() -> None:
    command = " ".join(_unit()["ExecStart"])
    drain = re.search(r"--drain-seconds (\d+)", command)
    assert drain is not None and int(_unit()["TimeoutStopSec"][0]) >= int(drain[1]) + 10


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is missing: the unit was only read as an INI file")
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/wrinklefree/bin/wf", "/bin/true"))
    done = subprocess.run([analyze, "verify", str(copy)], capture_output=True, text=True, timeout=60)
    assert copy.name not in done.stderr, done.stderr


def test_the_image_runs_wf_serve_without_root(options: set[str], server: RunningServer) -> None:
    text = DOCKERFILE.read_text()
    last = text[text.rindex("\nFROM ") :]
    entry = json.loads(re.search(r"^ENTRYPOINT (.*)$", last, re.MULTILINE)[1])  # type: ignore[index]
    assert entry[:2] == ["wf", "serve"] and _flags(shlex.join(entry)) <= options
    user = re.search(r"^USER (\d+)", last, re.MULTILINE)
    assert user is not None and int(user[1]) > 0 and last.index("USER") < last.index("ENTRYPOINT")
    assert "g++" not in last
    check = re.search(r"^HEALTHCHECK .*?CMD (\[.*?\])$", last, re.MULTILINE | re.DOTALL)
    assert check is not None
    command = [sys.executable, *json.loads(check[1])[1:]]
    for port, healthy in ((server.url.rsplit(":", 1)[1], True), ("1", False)):
        done = subprocess.run(command, env={**os.environ, "WRINKLEFREE_PORT": port}, capture_output=True, timeout=60)
        assert (done.returncode == 0) == healthy, done.stderr
    kept = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text()
    for copied in re.findall(r"^COPY (?!--)(.*) \S+$", text, re.MULTILINE):
        assert all((DEPLOY.parent / name).exists() and f"!{name}" in kept for name in copied.split())


def test_variables_are_options(options: set[str]) -> None:
    names = set()
    for file in (UNIT, DOCKERFILE, SKYPILOT, DEPLOY / "README.md"):
        names |= set(re.findall(r"WRINKLEFREE_([A-Z_]+[A-Z])", file.read_text()))
    assert {"API_KEY", "SLOTS"} <= names
    assert {"--" + name.lower().replace("_", "-") for name in names} <= options


def test_the_skypilot_task_serves(options: set[str], server: RunningServer) -> None:
    task = yaml.safe_load(SKYPILOT.read_text())
    assert server.client.get(task["service"]["readiness_probe"]["path"]).status_code == 200
    assert {"path", "initial_delay_seconds", "timeout_seconds"} >= set(task["service"]["readiness_probe"])
    policy = task["service"]["replica_policy"]
    assert 0 < policy["min_replicas"] <= policy["max_replicas"]
    assert f"--port {task['resources']['ports']}" in task["run"] and _flags(task["run"]) <= options
    assert "WRINKLEFREE_API_KEY" in task["secrets"]


def test_proxies_let_through_what_the_server_takes() -> None:
    settings = ServerSettings("model")
    nginx, caddy = ((DEPLOY / "proxy" / name).read_text() for name in ("nginx.conf", "Caddyfile"))
    assert f"client_max_body_size {settings.max_body_bytes >> 20}m;" in nginx
    assert f"max_size {settings.max_body_bytes >> 20}MB" in caddy
    for text, pattern in ((nginx, r"proxy_read_timeout (\d+)s"), (caddy, r"\bread_timeout (\d+)s")):
        found = re.search(pattern, text)
        assert found is not None and int(found[1]) > settings.request_seconds
    command = " ".join(_unit()["ExecStart"])
    assert (
        "--trusted-proxy 127.0.0.1" in command and "X-Forwarded-For $remote_addr" in nginx
    )  # one, not a list of claims
    assert "proxy_buffering off" in nginx and "flush_interval -1" in caddy
    for text in (nginx, caddy):
        assert text.count("{") == text.count("}")


def _asked(expression: str) -> set[str]:
    return set(re.findall(r"\b((?:wrinklefree|process)_[a-z_]+)\b", expression))


def test_every_panel_asks_for_metrics_that_exist(metrics: set[str]) -> None:
    dashboard = json.loads((DEPLOY / "monitoring" / "grafana-dashboard.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"]) and len(panels) > 10
    for panel in panels:
        for target in panel["targets"]:
            asked = _asked(target["expr"])
            assert asked and asked <= metrics, (panel["title"], asked - metrics)
    for variable in dashboard["templating"]["list"]:
        assert _asked(json.dumps(variable)) <= metrics


def test_alerts_ask_for_metrics_that_exist(metrics: set[str]) -> None:
    rules = yaml.safe_load((DEPLOY / "monitoring" / "wrinklefree-alerts.yml").read_text())
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    assert len(alerts) >= 4
    for alert in alerts:
        asked = _asked(alert["expr"].replace('job="wrinklefree"', ""))
        assert asked <= metrics, (alert["alert"], asked - metrics)
    scrape = yaml.safe_load((DEPLOY / "monitoring" / "prometheus.yml").read_text())
    assert (DEPLOY / "monitoring" / scrape["rule_files"][0]).exists()
    assert scrape["scrape_configs"][0]["metrics_path"] == "/metrics"
