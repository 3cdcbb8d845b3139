"""A PostgreSQL server of the test's own, where the Debian package is installed; toys of tests/train."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "train"))


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """URL of an empty database on a server that ends with the tests."""
    pytest.importorskip("psycopg", reason="not checked: PostgreSQL (pip install 'psycopg[binary]')")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = shutil.which("initdb") or (str(programs[-1]) if programs else None)
    if found is None:
        pytest.skip("not checked: a study on PostgreSQL (the server is not installed: apt install postgresql)")
    user = _user()
    # Not pytest's directory: only its owner may enter that one, and a socket's path must be short.
    home = Path(tempfile.mkdtemp(prefix="wf-pg-"))
    try:
        if user is not None:
            shutil.chown(home, user)
        yield from _server(Path(found).parent, home, user)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _user() -> str | None:
    """PostgreSQL refuses to run as root; another account of this machine runs it then. None: whoever runs the test."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    pytest.skip("not checked: a study on PostgreSQL (it does not run as root, and there is no other account)")


def _server(programs: Path, home: Path, user: str | None) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run(program: str, *words: str) -> None:
        log = (home.parent / f"{home.name}.log").open("wb")  # the server keeps it open: a pipe would never end
        with log:
            done = subprocess.run(
                [str(programs / program), *words], user=user, group=user and pwd.getpwnam(user).pw_gid, cwd=home,
                extra_groups=[] if user else None, stdout=log, stderr=log, timeout=120, env={"PATH": "/usr/bin:/bin"},
            )  # fmt: skip
        said = Path(log.name).read_text(errors="replace")
        Path(log.name).unlink()
        assert done.returncode == 0, f"{program}: {said}"

    data = str(home / "data")
    run("initdb", "-D", data, "-U", "sweep", "-A", "trust", "-E", "UTF8", "--no-sync", "--locale=C")
    options = f"-c listen_addresses=127.0.0.1 -p {port} -k {home} -c fsync=off -c max_connections=40"
    run("pg_ctl", "-D", data, "-w", "-l", str(home / "log"), "-o", options, "start")
    try:
        yield f"postgresql://sweep@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
