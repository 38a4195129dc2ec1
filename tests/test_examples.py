"""Every example runs, at tiny sizes, does what it says, and stays short."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


def load(name: str) -> ModuleType:
    (path,) = (p for p in EXAMPLES if p.stem == name)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_can_be_read_at_a_glance(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 60
    assert f'"{path.stem}' in Path(__file__).read_text(), "a test of its own"


def panels(path: Path, side: int) -> np.ndarray:
    """Truth and learned; colour, distance, normals: (2, 3, side, side, 3) in [0, 1]."""
    from PIL import Image

    picture = np.asarray(Image.open(path)).astype(float) / 255
    return picture.reshape(2, side, 3, side, 3).transpose(0, 2, 1, 3, 4)


def test_fit_sdf(tmp_path: Path) -> None:
    """A few steps on two small pictures bring colours and distances nearer to the truth (normals take longer)."""
    example = load("fit_sdf")
    gaps = []
    for steps in (1, 40):
        out = tmp_path / f"{steps}.png"
        example.main(steps, cameras=(1, 2), size=24, rays=96, side=20, out=out)
        truth, learned = panels(out, 20)
        gaps.append(np.abs(truth - learned).mean(axis=(1, 2, 3)))  # (3,) colour, distance, normals
    assert (gaps[1][:2] < 0.9 * gaps[0][:2]).all(), gaps


def test_the_scene_of_fit_sdf_is_a_distance() -> None:
    """Slope 1 off the edges, zero on the surfaces that it paints."""
    example = load("fit_sdf")
    points = torch.tensor([[2.5, -1.5, 4.0], [-2.5, 1.5, 3.0], [6.0, 6.0, 0.0], [2.5, -1.5, 9.0], [-9.0, 1.5, 1.5]])
    sdf, colour = example.scene(points)
    torch.testing.assert_close(sdf, torch.tensor([0.0, 0.0, 0.0, 5.0, 1.5]))  # the ground is nearest to the last
    assert [example.PAINT.tolist().index(c) for c in colour.tolist()] == [0, 1, 2, 0, 3]
