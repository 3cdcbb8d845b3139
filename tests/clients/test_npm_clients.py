"""openai and the AI SDK (ai with @ai-sdk/openai-compatible) from npm, under Node: one script each, which asserts."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from served import KEY, NODE_MODULES, Served

SCRIPTS = {"openai": "openai.mjs", "ai": "ai_sdk.mjs"}


@pytest.mark.parametrize("package", SCRIPTS)
def test_the_script_passes(package: str, served: Served, tmp_path: Path) -> None:
    if shutil.which("node") is None or not (NODE_MODULES / package).is_dir():
        pytest.skip(f"not checked: npm's {package} against the server (no Node, or no {NODE_MODULES / package})")
    script = tmp_path / SCRIPTS[package]  # modules are looked up beside the script
    script.write_text((Path(__file__).parent / SCRIPTS[package]).read_text())
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    done = subprocess.run(["node", str(script), served.url, served.model, KEY], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip().endswith("done")
