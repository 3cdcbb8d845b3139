"""schemathesis reads the server's OpenAPI document and tries it out: no server error, no answer that it does not allow.

Left out is one check: that whatever fits the document is accepted. A document cannot say what a prompt's tokens count,
or which modes and tools the model behind it knows.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from served import KEY, serving

pytest.importorskip("schemathesis", reason="not checked: schemathesis on the OpenAPI document")
SEEDS = (1, 2)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_operation_of_the_document_keeps_to_it(seed: int, toy: Path, tmp_path: Path) -> None:
    st = shutil.which("st", path=str(Path(sys.executable).parent))
    assert st is not None
    with serving(toy, "--ctx", "96", "--slots", "2") as small:  # unbounded max_tokens must end soon
        done = subprocess.run(
            [st, "run", f"{small.root}/openapi.json", "-H", f"Authorization: Bearer {KEY}", "--seed", str(seed),
             "--checks", "all", "--exclude-checks", "positive_data_acceptance", "--continue-on-failure",
             "--max-examples", "40", "--request-timeout", "60", "--warnings", "off", "--no-color"],
            capture_output=True, text=True, cwd=tmp_path,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr
