"""The ray casters against every triangle tried one by one."""

from __future__ import annotations

import _ctypes
import gc
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mim4d.errors import UserError
from mim4d.world import caster
from mim4d.world.caster import Caster, Embree, Native

Float32 = NDArray[np.float32]
native = pytest.mark.skipif(not caster.LIBRARY.exists(), reason=f"{caster.LIBRARY.name} is not built (make setup)")
Found = tuple[Float32, NDArray[np.int32], Float32, Float32]
Town = tuple[Float32, Float32, Float32, Found]


def nearest(made: Caster, origins: Float32, directions: Float32) -> Found:
    n = len(directions)
    out = (np.full(n, np.inf, np.float32), np.full(n, -1, np.int32), np.zeros(n, np.float32), np.zeros(n, np.float32))
    made.nearest(origins, directions, *out)
    return out


def one_by_one(vertices: Float32, origins: Float32, directions: Float32) -> Found:
    """csrc/world/rays.cpp's definition in numpy, operation by operation."""
    a, b, c = (vertices[:, k].astype(np.float64) for k in range(3))
    ab, ac = b - a, c - a
    o, d = (
        np.broadcast_to(x, directions.shape).astype(np.float64)[:, None] for x in (origins, directions)
    )  # (P, 1, 3)
    cross = lambda x, y: np.stack(
        [x[..., i] * y[..., j] - x[..., j] * y[..., i] for i, j in ((1, 2), (2, 0), (0, 1))], -1
    )
    dot = lambda x, y: x[..., 0] * y[..., 0] + x[..., 1] * y[..., 1] + x[..., 2] * y[..., 2]
    with np.errstate(all="ignore"):
        p = cross(d, ac)
        volume = dot(ab, p)
        scale = 1.0 / volume
        s = o - a
        u = dot(s, p) * scale
        q = cross(s, ab)
        v = dot(d, q) * scale
        t = dot(ac, q) * scale
        met = (volume != 0) & (u >= 0) & (u <= 1) & (v >= 0) & (u + v <= 1) & (t > 0)
    t = np.where(met, t, np.inf)
    face = t.argmin(1)  # the first of equals
    row = np.arange(len(face))
    hit = np.isfinite(t[row, face])
    pick = lambda x, other: np.where(hit, x[row, face], other).astype(np.float32)
    return pick(t, np.inf), np.where(hit, face, -1).astype(np.int32), pick(u, 0), pick(v, 0)


def soup(rng: np.random.Generator, n: int, size: float) -> Float32:
    return (rng.uniform(-20, 20, (n, 1, 3)) + rng.uniform(-size, size, (n, 3, 3))).astype(np.float32)


def boxes(rng: np.random.Generator, n: int) -> Float32:
    """Axis-parallel boxes on a grid of whole metres: their faces share planes, edges and corners."""
    corners = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    quads = [(0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5)]
    triangles = [(q[0], q[1], q[2]) for q in quads] + [(q[0], q[2], q[3]) for q in quads]
    place, size = rng.integers(-8, 8, (n, 1, 3)), rng.integers(1, 4, (n, 1, 3))
    return (place + size * corners)[:, triangles].reshape(-1, 3, 3).astype(np.float32)


def aim(rng: np.random.Generator, vertices: Float32, n: int) -> tuple[Float32, Float32]:
    """Rays of every kind: anywhere, along the axes, and exactly at corners and edges."""
    origins = rng.uniform(-25, 25, (n, 3))
    origins[::5] = np.round(origins[::5])
    target = rng.uniform(-20, 20, (n, 3))
    target[::3] = vertices[rng.integers(len(vertices), size=len(target[::3])), rng.integers(3, size=len(target[::3]))]
    edge = vertices[rng.integers(len(vertices), size=len(target[1::3]))]
    target[1::3] = 0.5 * edge[:, 0] + 0.5 * edge[:, 1]
    d = target - origins
    d[::7] = np.eye(3)[rng.integers(3, size=len(d[::7]))] * rng.choice([-1, 1], (len(d[::7]), 1))
    d /= np.maximum(np.sqrt((d * d).sum(1, keepdims=True)), 1e-9)
    return origins.astype(np.float32), d.astype(np.float32)


@native
@pytest.mark.parametrize("size", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("n", [1, 2, 5, 300])
def test_bit_for_bit_what_one_by_one_finds_in_a_soup(n: int, size: float) -> None:
    rng = np.random.default_rng([n, int(size * 100)])
    vertices = soup(rng, n, size)
    rays = aim(rng, vertices, 2000)
    found, wanted = nearest(Native(vertices), *rays), one_by_one(vertices, *rays)
    assert (wanted[1] >= 0).sum() > 100
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(got, want)


@native
def test_bit_for_bit_among_touching_boxes() -> None:
    rng = np.random.default_rng(1)
    vertices = boxes(rng, 60)
    vertices = np.concatenate([vertices, vertices[:50], np.zeros((3, 3, 3), np.float32)])  # twins, and points
    rays = aim(rng, vertices, 3000)
    found, wanted = nearest(Native(vertices), *rays), one_by_one(vertices, *rays)
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(got, want)
    assert (wanted[1] >= 0).mean() > 0.3


@native
def test_bit_for_bit_from_one_place_in_a_town(town: Town) -> None:
    for got, want in zip(nearest(Native(town[0]), *town[1:3]), town[3], strict=True):
        np.testing.assert_array_equal(got, want)


@native
def test_blocked_is_whether_anything_is_met() -> None:
    rng = np.random.default_rng(2)
    vertices = boxes(rng, 60)
    origins, _ = aim(rng, vertices, 4000)
    for direction in (np.float32([0, 0, 1]), np.float32([0.6, 0, 0.8]), np.float32([-1, 0, 0])):
        made = Native(vertices)
        wanted = nearest(made, origins, np.broadcast_to(direction, origins.shape))[1] >= 0
        assert 0.01 < wanted.mean() < 0.99
        np.testing.assert_array_equal(made.blocked(origins, direction), wanted)


@native
def test_only_what_is_nearer_is_written() -> None:
    wall = np.float32([[[5, -9, -9], [5, 9, -9], [5, 0, 9]]])
    made = Native(wall)
    x = np.float32([[1, 0, 0]] * 3 + [[-1, 0, 0]])
    distance, face = np.float32([np.inf, 6, 5, np.inf]), np.full(4, 7, np.int32)
    u, v = np.full(4, 0.25, np.float32), np.full(4, 0.75, np.float32)
    made.nearest(np.zeros(3, np.float32), x, distance, face, u, v)
    np.testing.assert_array_equal(distance, np.float32([5, 5, 5, np.inf]))
    np.testing.assert_array_equal(face, [0, 0, 7, 7])
    np.testing.assert_array_equal(u, np.float32([0.25, 0.25, 0.25, 0.25]))
    np.testing.assert_array_equal(v, np.float32([0.5, 0.5, 0.75, 0.75]))


@native
def test_nothing_and_heaps() -> None:
    rays = np.zeros((2, 3), np.float32), np.float32([[1, 0, 0], [0, 1, 0]])
    assert (nearest(Native(np.empty((0, 3, 3), np.float32)), *rays)[1] == -1).all()
    assert not Native(np.empty((0, 3, 3), np.float32)).blocked(*rays[:1], rays[1][0]).any()
    same = np.tile(np.float32([[[5, -9, -9], [5, 9, -9], [5, 0, 9]]]), (5000, 1, 1))  # no cut parts them
    assert nearest(Native(same), *rays)[1].tolist() == [0, -1]
    shrinking = np.exp2(-np.arange(100, dtype=np.float32))[:, None, None] * same[:100]  # every cut parts few
    assert nearest(Native(shrinking), *rays)[1].tolist() == [99, -1]
    assert nearest(Native(same), rays[0], rays[1][:0])[0].shape == (0,)


@native
def test_its_memory_goes_with_it() -> None:
    made = Native(soup(np.random.default_rng(0), 10, 1.0))
    freed = weakref.ref(made)
    del made
    gc.collect()
    assert freed() is None


def test_embree_finds_nearly_the_same(town: Town) -> None:
    vertices, origin, directions, (near, number, _, _) = town
    distance, face, _, _ = nearest(Embree(vertices), origin, directions)
    assert (face != number).mean() < 1e-3  # measured 0; 6e-5 over whole images
    same = (face == number) & (face >= 0)
    np.testing.assert_allclose(distance[same], near[same], rtol=1e-5)  # measured 1e-6; 9e-6 over whole images
    blocked = Embree(vertices).blocked(np.broadcast_to(origin, (5, 3)), np.float32([0, 0, -1]))
    assert blocked.all()


def test_without_both_there_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caster, "_library", lambda: None)
    monkeypatch.setitem(sys.modules, "embreex.rtcore_scene", None)
    with pytest.raises(
        UserError, match=r"needs mim4d's native library world_rays.so \(not built\) or embreex .*pip inst"
    ):
        caster.make_caster(np.zeros((1, 3, 3), np.float32))
    with pytest.raises(UserError, match="needs mim4d's native library"):
        caster.caster_kind()


def test_its_kind_is_what_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"native": Native, "embree": Embree}
    assert isinstance(caster.make_caster(np.eye(3, dtype=np.float32)[None]), kinds[caster.caster_kind()])
    monkeypatch.setattr(caster, "_library", lambda: None)
    assert caster.caster_kind() == "embree"
    assert isinstance(caster.make_caster(np.eye(3, dtype=np.float32)[None]), Embree)


def test_a_broken_library_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "world_rays.so").write_bytes(b"no library")
    monkeypatch.setattr(caster, "LIBRARY", tmp_path / "world_rays.so")
    with pytest.raises(UserError, match=r"world_rays.so cannot be loaded \(.*make setup"):
        caster._library.__wrapped__()


@pytest.mark.parametrize("built", [0, 1])
def test_a_library_of_another_build_is_one_clear_line(built: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It loads, but takes other arguments: called, it would read memory that is not there."""
    if built:
        pytest.importorskip("mim4d._C", reason="nothing is built (make setup)")
        monkeypatch.setattr(caster, "ABI", caster.ABI + 1)
    else:  # any library that says nothing of its interface
        monkeypatch.setattr(caster, "LIBRARY", Path(_ctypes.__file__))
    words = rf"built from other sources \(interface {built and caster.ABI - 1}, wanted {caster.ABI}\); .*make setup"
    with pytest.raises(UserError, match=words):
        caster._library.__wrapped__()


@pytest.fixture(scope="module")
def town() -> Town:
    """A scene's still triangles (F, 3, 3), a camera's place (3,), 768 of its rays, and what they meet."""
    from mim4d.world.scene import Scene
    from mim4d.world.sensors import make_rig

    scene = Scene(seed=3, index=0, validation=False, seconds=1.0, tile=(0.0, 0.0))
    camera = make_rig(np.random.default_rng(0), (96, 160)).cameras["CAM_FRONT"]
    pose = scene.ego_pose(0.5) @ camera.ego_from_cam
    directions = (camera.rays[::20] @ pose[:3, :3].T).astype(np.float32)
    vertices, origin = scene.still.vertices, (pose[:3, 3] - scene.origin).astype(np.float32)
    wanted = [one_by_one(vertices, origin, directions[i : i + 96]) for i in range(0, len(directions), 96)]
    return vertices, origin, directions, tuple(np.concatenate(w) for w in zip(*wanted, strict=True))
