"""What the pictures look like: weather, light and texture do what they say, views agree, nothing is out of range."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from mim4d.world.air import LIGHTS, WEATHERS, draw, make_air
from mim4d.world.film import NOISE, photograph
from mim4d.world.knobs import Knobs
from mim4d.world.materials import Material
from mim4d.world.mesh import Builder
from mim4d.world.painting import TILE
from mim4d.world.pieces import build
from mim4d.world.recipe import Recipe
from mim4d.world.scene import Scene
from mim4d.world.sensors import Camera, Rig, camera_view, look, render
from mim4d.world.shading import MIRRORS, Shader, clearness
from mim4d.world.textures import LEVELS, Atlas
from mim4d.world.variants import KINDS

SEED, SIZE, T = 0, (64, 112), 0.5
QUIET = {"sensor_noise": 0.0}


@functools.cache
def world(validation: bool = False, **knobs: float | str) -> tuple[Scene, Rig, Shader]:
    wanted = Knobs(**{"weather": "clear", "light": "day", **QUIET, **knobs})
    recipe = Recipe(seed=SEED, seconds=1.0, image_size=SIZE, knobs=wanted)
    scene, rig = build(recipe, recipe.slots()[int(validation)])
    return scene, rig, Shader(scene)


def picture(channel: str, **knobs: float | str) -> np.ndarray:
    scene, rig, shader = world(**knobs)
    camera = rig.cameras[channel]
    return render(shader, camera, scene.at(T, camera_view(scene, camera, T))).astype(float)


def pictures(**knobs: float | str) -> np.ndarray:
    """(2, H, W, 3) to the front and to the back."""
    return np.stack([picture(c, **knobs) for c in ("CAM_FRONT", "CAM_BACK")])


def roughness(images: np.ndarray) -> float:
    """Mean difference between neighbouring pixels."""
    return float(np.abs(np.diff(images.mean(-1), axis=2)).mean())


@pytest.mark.parametrize("light", LIGHTS)
@pytest.mark.parametrize("weather", WEATHERS)
def test_every_weather_and_light_makes_a_readable_picture(weather: str, light: str) -> None:
    images = pictures(weather=weather, light=light)
    # Measured: means 66 to 156 and standard deviations 27 to 57 of 255; burnt out at most 0.5 %, black nowhere.
    assert 40 < images.mean() < 190
    assert images.std() > 18
    assert (images == 255).mean() < 0.01
    assert (images.max(-1) == 0).mean() < 0.001


def test_days_are_brighter_than_dusk_and_dusk_than_night() -> None:
    for weather in WEATHERS:
        mean = [pictures(weather=weather, light=light).mean() for light in ("day", "dusk", "night")]
        assert mean[0] > mean[1] + 15
        assert mean[1] > mean[2] + 5


def test_light_has_its_colour() -> None:
    """The low sun is warm; rain is greyer than a clear day; lamps at night are warmer than the sky at dusk."""
    warmth = lambda **knobs: float((lambda x: x[..., 0].mean() / x[..., 2].mean())(pictures(**knobs)))
    assert warmth(light="low_sun") > 1.1 * warmth()
    assert warmth(light="night") > 1.1 * warmth(light="dusk")
    spread = lambda **knobs: float(np.ptp(pictures(**knobs), axis=-1).mean())
    assert spread(weather="rain") < 0.9 * spread()


def test_fog_takes_away_what_is_far() -> None:
    """Contrast (deviation over mean) near and far, in fog over that on a clear day."""
    ratio = {}
    scene, rig, _ = world()
    for channel in ("CAM_FRONT", "CAM_BACK"):
        distance = look(scene, rig.cameras[channel], T).distance.reshape(SIZE)
        for name, (low, high) in {"near": (0, 8), "middle": (15, 35), "far": (60, 500)}.items():
            mine = (distance > low) & (distance < high)
            contrast = [x[mine].std() / x[mine].mean() for x in (picture(channel), picture(channel, weather="fog"))]
            ratio.setdefault(name, []).append(contrast[1] / contrast[0])
    near, middle, far = (max(ratio[k]) for k in ("near", "middle", "far"))
    assert middle < 0.6 * near
    assert far < 0.6 * near


def test_fog_and_rain_shorten_what_a_lidar_may_reach() -> None:
    reach = {w: make_air(np.random.default_rng(0), w, "day", 0.0).lidar_reach for w in WEATHERS}
    assert reach["clear"] == reach["overcast"] == 1.0
    assert 0.5 < reach["fog"] < reach["rain"] < 1.0


def test_the_texture_knob_scales_the_pattern() -> None:
    flat, plain, strong = (roughness(pictures(texture=k)) for k in (0.0, 1.0, 2.0))
    assert flat < 0.75 * plain
    assert strong > 1.2 * plain
    # A flat wall is of one colour: the atlas's mean, whatever the place.
    scene, _, shader = world(texture=0.0)
    wall = np.flatnonzero((scene.mesh.material == Material.PLASTER) & (scene.mesh.owner < 0))[:1].repeat(50)
    rng = np.random.default_rng(0)
    u, v = rng.random((2, 50), np.float32) / 2
    point = rng.uniform(-1, 1, (3, 50)).astype(np.float32)
    up = np.tile(np.float32([[1], [0], [0]]), 50)
    got, _, _ = shader.albedo(
        wall, scene.mesh.material[wall], u, v, point, up, up, np.full(50, 0.01, np.float32), up[0]
    )
    np.testing.assert_allclose(got, got[:, :1].repeat(50, 1), atol=1e-6)


def _both(a: Camera, b: Camera, scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points of a's image (P, 3) that b sees too, and the pixels (P,), (P,) at which either shows them."""
    hits = look(scene, a, T)
    pose_a, pose_b = scene.ego_pose(T) @ a.ego_from_cam, scene.ego_pose(T) @ b.ego_from_cam
    ok = np.flatnonzero(np.isfinite(hits.distance) & (hits.owner < 0) & (hits.distance < 25))
    points = (a.rays[ok] * hits.distance[ok, None]).astype(float) @ pose_a[:3, :3].T + pose_a[:3, 3]
    local = (points - pose_b[:3, 3]) @ pose_b[:3, :3]
    uv = local @ b.intrinsics.T
    x, y = (uv[:, i] / np.where(local[:, 2] > 0.5, local[:, 2], np.inf) for i in (0, 1))
    inside = (local[:, 2] > 0.5) & (x > 0) & (x < b.width) & (y > 0) & (y < b.height)
    distance = np.linalg.norm(points - pose_b[:3, 3], axis=1)
    d = ((points - pose_b[:3, 3]) / distance[:, None]).astype(np.float32)
    seen = np.abs(scene.at(T).cast(pose_b[:3, 3], d).distance - distance) < 0.02
    at = np.flatnonzero(inside & seen)
    return points[at], d[at], (points[at] - pose_a[:3, 3])


@pytest.mark.parametrize("light", LIGHTS)
@pytest.mark.parametrize("weather", WEATHERS)
def test_two_cameras_agree_on_the_colour_of_a_place(weather: str, light: str) -> None:
    """Light of still points, seen from two places at once, less what haze and mirrors add on the way."""
    scene, rig, shader = world(weather=weather, light=light)
    if scene.air.wet:  # a wet road mirrors, and a mirror shows something else to each
        scene = copy.copy(scene)
        scene.air = replace(scene.air, wet=0.0)
        shader = Shader(scene)
    a, b = rig.cameras["CAM_FRONT"], rig.cameras["CAM_FRONT_LEFT"]
    points, from_b, offset = _both(a, b, scene)
    assert len(points) > 60
    moment = scene.at(T)
    pose = [(scene.ego_pose(T) @ c.ego_from_cam)[:3, 3] for c in (a, b)]
    from_a = (offset / np.linalg.norm(offset, axis=1, keepdims=True)).astype(np.float32)
    light_seen, matt = [], np.ones(len(points), bool)
    for origin, d in ((pose[0], from_a), (pose[1], from_b)):
        hits = moment.cast(origin, d)
        # At the finest mip level, so that only the place decides.
        seen = shader.colours(moment, origin, d, hits, 1e-6) / scene.air.exposure
        clear = clearness(hits.distance, scene.air.haze)
        light_seen.append((seen - shader.horizon[:, None]) / clear + shader.horizon[:, None])
        matt &= ~MIRRORS[shader.material[hits.face]]
    same = np.abs(light_seen[0] - light_seen[1]).max(0) < 0.03 * (light_seen[0].max(0) + 0.02) + 0.004
    assert matt.sum() > 60
    # All of 220 points do in every weather and light; a shadow's or a texel's edge may lie between two hits.
    assert same[matt].mean() > 0.97


def test_mixed_starts_every_map_with_a_clear_day_and_then_shows_all() -> None:
    drawn = {draw(np.random.default_rng([i]), "mixed", "mixed", False) for i in range(200)}
    assert drawn == {(w, l) for w in WEATHERS for l in LIGHTS}
    assert draw(np.random.default_rng(5), "mixed", "mixed", True) == ("clear", "day")
    assert draw(np.random.default_rng(5), "fog", "mixed", True) == ("fog", "day")
    recipe = Recipe(seed=SEED, seconds=1.0, image_size=SIZE)
    for slot in recipe.slots():
        scene, _ = build(recipe, slot)
        assert (scene.air.weather, scene.air.light) == ("clear", "day")


def test_weather_and_light_change_nothing_but_the_light() -> None:
    """The same town, the same actors, the same ways: only what they look like differs."""
    a, b = world()[0], world(weather="rain", light="night")[0]
    np.testing.assert_array_equal(a.mesh.vertices, b.mesh.vertices)
    np.testing.assert_array_equal(a.ego_pose(T), b.ego_pose(T))
    assert a.air.sun_colour.max() > 0
    assert b.air.sun_colour.max() == 0
    assert b.air.lamps > a.air.lamps == 0


def test_train_and_validation_have_textures_of_their_own() -> None:
    train, validation, other = Atlas(SEED, 0, False), Atlas(SEED, 0, True), Atlas(SEED, 1, False)
    np.testing.assert_array_equal(train.texels, Atlas(SEED, 0, False).texels)
    for m in (Material.BRICK, Material.ASPHALT, Material.PLASTER, Material.GRASS):
        tile = slice(m * Atlas.stride, m * Atlas.stride + TILE * TILE)
        for one in (validation, other):
            assert (one.texels[tile] != train.texels[tile]).mean() > 0.5


def test_the_mask_is_read_where_it_was_drawn() -> None:
    atlas = Atlas(0)
    side = atlas.masks[Material.SIDE_GLASS * atlas.stride :][: TILE * TILE].reshape(TILE, TILE)
    y, x = np.array([20, 90, 127, 3]), np.array([30, 70, 2, 100])
    u, v = ((w + 0.5).astype(np.float32) / TILE for w in (x, y))
    material, level = np.full(4, Material.SIDE_GLASS, np.uint8), np.zeros(4, np.int32)
    np.testing.assert_array_equal(
        atlas.mask(material, u + 3, v - 2, level), side[y, x].astype(np.float32) / np.float32(255)
    )
    assert side[20, 30] == 255  # a pane
    assert side[127, 2] == 0  # its frame
    assert atlas.mask(material, u, v, level + LEVELS - 1).std() == 0


def test_noise_is_that_of_the_knob() -> None:
    grey = np.full((3, 64 * 96), 0.3, np.float32)
    clean = photograph(grey, (64, 96), 0.8, 0.0, [1]).astype(float)
    for amount in (1.0, 3.0):
        noisy = photograph(grey, (64, 96), 0.8, amount, [1]).astype(float)
        noise = noisy - clean
        assert noise.mean() == pytest.approx(0, abs=0.1)
        # Green has the common part alone; red and blue vary by sqrt(1 + 0.36) of it. Rounding adds a twelfth.
        assert noise[..., 1].std() == pytest.approx(math.sqrt((NOISE * amount) ** 2 + 1 / 6), rel=0.06)
        assert noise[..., 0].std() == pytest.approx(math.sqrt(1.36 * (NOISE * amount) ** 2 + 1 / 6), rel=0.06)
        np.testing.assert_array_equal(noisy, photograph(grey, (64, 96), 0.8, amount, [1]))
        assert (noisy != photograph(grey, (64, 96), 0.8, amount, [2])).any()


def test_the_same_moment_gives_the_same_picture_and_another_one_other_noise() -> None:
    scene, rig, shader = world(sensor_noise=1.0)
    camera = rig.cameras["CAM_FRONT"]
    one, two, later = (render(shader, camera, scene.at(t)) for t in (T, T, T + 1e-6))
    np.testing.assert_array_equal(one, two)
    difference = one.astype(float) - later
    assert 0.5 < difference.std() < 4.0  # two draws of 1.1 to 1.3 each, and their rounding: measured 2.3
    assert np.abs(one - picture("CAM_FRONT")).mean() < 2.0


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_fill_their_boxes(kind: str) -> None:
    """At every size that the placer draws: two standard deviations either way in each direction."""
    spec, less, more = KINDS[kind], 1 - 2 * KINDS[kind].spread, 1 + 2 * KINDS[kind].spread
    for seed, factors in enumerate(itertools.product((less, more), repeat=3)):
        width, length, height = (s * f for s, f in zip(spec.size, factors, strict=True))
        mesh = spec.build(np.random.default_rng(seed), width, length, height)
        extent = np.abs(mesh.vertices.reshape(-1, 3)).max(0) / (np.array([length, width, height]) / 2)
        assert (extent < 1.001).all(), extent  # all of it inside: the LiDAR's points must lie in the box
        assert (extent > 0.6).all(), extent
        assert mesh.vertices[..., 2].min() < -0.485 * height  # it stands on the ground


def test_rounded_shapes_look_outwards() -> None:
    b = Builder()
    b.limb((0, 0, 0), (0.4, 0.2, 2), 0.3, 0.1, Material.BARK)
    b.limb((3, 0, 0), (3, 0, 1), 0.4, 0.4, Material.SKIN, ball=True)
    b.wheel((6, 0, 0.4), 0.4, 0.2, 1.0, Material.TYRE)
    b.wheel((9, 0, 0.4), 0.4, 0.2, -1.0, Material.TYRE)
    mesh = b.mesh()
    middle = mesh.vertices.mean(1)
    centre = np.array([(0.2, 0.1, 1.0), (3, 0, 0.5), (6, 0, 0.4), (9, 0, 0.4)])[(middle[:, 0] / 3).round().astype(int)]
    assert (((middle - centre) * mesh.normals).sum(1) > 0).all()
    bent = np.abs(mesh.bend).max((1, 2)) > 0
    np.testing.assert_allclose(np.linalg.norm(mesh.bend[bent], axis=-1), 1, atol=1e-5)
    assert ((mesh.bend[bent] * mesh.normals[bent, None]).sum(-1) > 0.7).all()


def test_under_a_car_and_beside_a_wall_it_is_darker() -> None:
    scene, _, shader = world(weather="overcast")
    moment = scene.at(T)
    car = next(a for a in scene.actors if a.kind == "car" and a.route is None)
    centre = car.pose(T)[0] - scene.origin
    beside = centre + (*(4.0 * np.array([math.cos(car.yaw), math.sin(car.yaw)])), 0)
    points = np.stack([centre, beside], 1).astype(np.float32)
    points[2] = 0
    up = np.tile(np.float32([[0], [0], [1]]), 2)
    under, free = shader._openness(moment, np.zeros(2, np.int32), points, up)
    assert under < 0.5
    assert free > 0.8
    wall = np.tile(np.float32([[1], [0], [0]]), 2)
    foot, high = shader._openness(moment, np.zeros(2, np.int32), np.float32([[0, 0], [0, 0], [0.16, 6.0]]), wall)
    assert foot < 0.8 < high


@pytest.mark.parametrize("knobs", [{"weather": "rain", "light": "night"}, {"texture": 2.0}, {"texture": 0.0}])
def test_light_is_never_less_than_nothing(knobs: dict[str, float | str]) -> None:
    """In all directions it is finite and not negative."""
    scene, _, shader = world(**knobs)
    rng = np.random.default_rng(0)
    d = rng.standard_normal((20_000, 3)).astype(np.float32)
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    for t in (0.0, 1.0):
        moment = scene.at(t)
        start = scene.ego_pose(t)[:3, 3] + (0, 0, 2.0)
        light = shader.colours(moment, start, d, moment.cast(start, d), 0.005)
        assert np.isfinite(light).all()
        assert light.min() >= 0
