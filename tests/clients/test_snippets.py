"""Every example of docs/clients.md as it is written, but for the address and the key.

Left out is lm-eval's, whose task would have to be downloaded; test_lm_eval_client.py does the same with a local one.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from served import KEY, MODEL, NODE_MODULES, ROOT, Served

TEXT = (ROOT / "docs" / "clients.md").read_text()
SNIPPETS = [
    (language, text)
    for language, text in re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.S | re.M)
    if "lm_eval" not in text and "127.0.0.1" in text and "export " not in text
]


@pytest.mark.parametrize(("language", "text"), SNIPPETS, ids=[f"{i}-{one[0]}" for i, one in enumerate(SNIPPETS)])
def test_an_example_runs(language: str, text: str, served: Served, tmp_path: Path) -> None:
    assert MODEL in text or language == "sh"
    text = text.replace("http://127.0.0.1:8000", served.root).replace("unused", KEY)
    programs = {"python": (sys.executable, "py"), "js": ("node", "mjs"), "sh": ("sh", "sh")}
    program, ending = programs[language]
    wanted = "curl" if language == "sh" else program
    if shutil.which(wanted) is None or (language == "js" and not NODE_MODULES.is_dir()):
        pytest.skip(f"not checked: an example of docs/clients.md that needs {wanted} and its packages")
    (tmp_path / f"example.{ending}").write_text(text)
    if language == "js":
        (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    done = subprocess.run([program, f"example.{ending}"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.strip(), done.stdout + done.stderr
    assert '"error"' not in done.stdout, done.stdout


def test_no_example_was_overlooked() -> None:
    assert sorted(language for language, _ in SNIPPETS) == ["js", "js", "python", "python", "python", "python", "sh"]
