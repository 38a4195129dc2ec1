"""One small world for all tests of this room, its ground truth, and the devkit's view of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.world_truth import SECONDS, SEED, SIZE, Truth

from mim4d.world import generate, open_scene


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "data"
    generate(out, seed=SEED, scenes=2, seconds=SECONDS, image_size=SIZE, extras=True)
    return out


@pytest.fixture(scope="session")
def nusc(root: Path) -> Any:
    from nuscenes.nuscenes import NuScenes

    return NuScenes("v1.0-mini", str(root), verbose=False)


@pytest.fixture(scope="session", params=["scene-0061", "scene-0103"])
def truth(request: pytest.FixtureRequest, root: Path, nusc: Any) -> Truth:
    scene, rig, start = open_scene(root, request.param)
    return Truth(request.param, scene, rig, start, nusc)
