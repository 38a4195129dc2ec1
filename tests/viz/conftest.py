"""Run folders that several tests read."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.fake_run import write_run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three frames. Shared: read it, do not change it."""
    return write_run(tmp_path_factory.mktemp("viz") / "finished")


@pytest.fixture(scope="session")
def unfinished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run stopped half way: no result, no pictures after training. Shared: read it, do not change it."""
    return write_run(tmp_path_factory.mktemp("viz") / "unfinished", finished=False)
