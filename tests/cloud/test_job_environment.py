"""Variables: .env first, then the process; what is missing is named at once; values are shown nowhere."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.cloud.environment import collect, read_env
from wrinklefree.errors import InputError


def test_the_file_comes_first_then_the_process(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("HF_TOKEN=from-file\nexport A='x # y'  # why\nB=1 # comment\nEMPTY=\n\n# C=3\n")
    process = {"HF_TOKEN": "from-process", "WANDB_API_KEY": "w", "UNASKED": "u"}
    found = collect(["A", "B", "SHOWN=a=b"], {}, file, process)
    assert found.secret == {"A": "x # y", "B": "1", "HF_TOKEN": "from-file", "WANDB_API_KEY": "w"}
    assert found.given == {"SHOWN": "a=b"} and "from-file" not in repr(found)


def test_everything_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("EMPTY=\n")
    with pytest.raises(InputError, match=r"EMPTY \(--env\), KEY \(--env\), WANDB_API_KEY \(log.tracker=wandb\)"):
        collect(["EMPTY", "KEY"], {"WANDB_API_KEY": "log.tracker=wandb"}, file, {})
    assert collect(["WANDB_API_KEY=x"], {"WANDB_API_KEY": "why"}, None, {}).given == {"WANDB_API_KEY": "x"}
    with pytest.raises(InputError, match="by letters, digits and _"):
        collect(["A-B"], {}, None, {})


@pytest.mark.parametrize("line", ["no equals and hunter2", "A-B=hunter2", "A='hunter2", '="hunter2"', "A='x'hunter2"])
def test_a_line_that_cannot_be_read_is_named_but_not_shown(line: str, tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text(f"GOOD=1\n{line}\n")
    with pytest.raises(InputError, match="line 2") as caught:
        read_env(file)
    assert "hunter2" not in str(caught.value)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(["A", "_B", "C9"]), st.text('ab =#"\\$`é', max_size=8)))
def test_quoted_values_come_back_as_they_are(values: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / ".env"
        file.write_text("".join(f"{name}='{value}'\n" for name, value in values.items()), encoding="utf-8")
        assert read_env(file) == values
