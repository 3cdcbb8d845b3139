"""A study on PostgreSQL: the same race as on a file, with workers killed with -9."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_table_races import check_race, race


@pytest.mark.filterwarnings("error")
def test_workers_killed_anywhere_leave_no_trial_behind(postgresql: str, tmp_path: Path) -> None:
    check_race(*race(postgresql, tmp_path, 25, 3, seed=1), 25, 3)
