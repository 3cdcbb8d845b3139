"""What `wf launch` would send, written by our own environment; the packages that read it are in this one."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

# Both packages keep settings at home, and look for them when they are imported: they find an empty one.
_HOME = tempfile.mkdtemp(prefix="wf-providers-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
os.environ.update(HOME=_HOME, SKYPILOT_DISABLE_USAGE_COLLECTION="1", KUBECONFIG=os.devnull)
for _name in ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET"):
    os.environ.pop(_name, None)

HERE = Path(__file__).parent
# SkyPilot fetches its list of GPU names at the first use. These are the names of skypilot-org/skypilot-catalog,
# catalogs/v8/common/accelerators.csv, that ours become.
GPU_NAMES = (
    "A10", "A100", "A100-80GB", "A10G", "A40", "B200", "H100", "H200", "L4", "L40S", "RTX3090", "RTX4090", "RTX5090",
    "RTXPRO6000S",
)  # fmt: skip
ROOT = HERE.parents[2]
PYTHON = os.environ.get("WRINKLEFREE_PYTHON", str(ROOT / ".venv" / "bin" / "python"))


def pytest_configure() -> None:
    try:
        from sky.skylet import constants
    except ImportError:
        return
    names = Path(_HOME) / ".sky" / "catalogs" / constants.CATALOG_SCHEMA_VERSION / "common" / "accelerators.csv"
    names.parent.mkdir(parents=True)
    names.write_text("AcceleratorName,Clouds\n" + "".join(f"{name},['AWS']\n" for name in GPU_NAMES))


@pytest.fixture(scope="session")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("requests")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}", "OMP_NUM_THREADS": "1"}
    subprocess.run([PYTHON, str(HERE / "own_side.py"), str(directory)], check=True, env=environment)
    return directory
