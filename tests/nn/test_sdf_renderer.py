"""The SDF field and renderer: planes whose depth is known, rays that miss, units, chunks, precision."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from helpers.fields import BOUNDS, fan, plane_field, random_scene, x_volume
from helpers.process import python

from mim4d.nn import RenderOutput, SDFField, SDFRenderer


@pytest.mark.parametrize("by_volume", [False, True])
@pytest.mark.parametrize("metres", [6.0, 20.0, 33.0])
def test_a_plane_is_rendered_at_its_depth_in_metres(metres: float, by_volume: bool) -> None:
    renderer = SDFRenderer(plane_field(by_volume, metres / 40), BOUNDS).eval()
    origins, directions = fan()
    out = renderer(x_volume(), origins, directions)
    wanted = (metres - 1.0) / directions[..., 0]
    assert out.hit.all()
    assert (out.depth - wanted).abs().max() < 0.05  # measured 0.016 m: sections are finest around the surface
    assert torch.allclose(out.opacity, torch.ones_like(out.opacity), atol=1e-3)
    assert torch.allclose(out.rgb, torch.tensor([0.0, 2.0, -2.0]).sigmoid().expand_as(out.rgb), atol=1e-3)
    inside = out.edges[..., :-1] * directions[..., :1] + 1.0 < 37  # a cell before the box ends, where zeros blend in
    assert torch.allclose(out.gradient[inside], torch.tensor([-1.0, 0, 0]).expand(int(inside.sum()), 3), atol=1e-4)
    assert torch.allclose(
        out.sdf[inside], (metres - 1.0 - out.edges[..., :-1] * directions[..., :1])[inside], atol=1e-3
    )


def test_depth_is_exact_with_fine_edges() -> None:
    renderer = SDFRenderer(plane_field(False, 0.5), BOUNDS).eval()  # a plane at 20 m
    origins, directions = fan()
    wanted = 19.0 / directions[..., 0]  # (1, 9)
    edges = wanted[..., None] + torch.linspace(-0.5, 0.5, 101)  # 1 cm
    out = renderer(x_volume(), origins, directions, edges=edges)
    # Half a section, and up to 1e-5 of weight in each of the 50 sections before: 0.0005 x 0.25 m.
    assert (out.depth - wanted).abs().max() < 0.006
    torch.testing.assert_close(out.edges, edges)


def test_what_lies_behind_a_ray_is_not_seen() -> None:
    renderer = SDFRenderer(plane_field(False, 0.5), BOUNDS, background=(0.1, 0.2, 0.3)).eval()  # at x = 20 m
    origins, directions = fan()
    out = renderer(x_volume(), origins, -directions)
    assert out.hit.all()
    assert (out.opacity < 2e-3).all()  # 96 sections of at most 1e-5, and some
    assert torch.allclose(out.rgb, torch.tensor([0.1, 0.2, 0.3]).expand_as(out.rgb), atol=2e-3)


def bad_rays() -> tuple[torch.Tensor, torch.Tensor]:
    nan = float("nan")
    origins = torch.tensor(
        [[100.0, 0, 0], [0, 0, 20], [0, 0, 0], [nan, 0, 0], [0, 0, 0], [0, 0, 3.5], [60, 60, 60], [0, 41, 0]]
    )
    directions = torch.tensor(
        [[1.0, 0, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0], [nan, 0, 0], [0, 0, 1], [0.6, 0.8, 0], [0, 0, 1]]
    )  # past the box, above it, no direction, NaN, NaN, out of the top within `near`, away, beside it
    return origins[None], directions[None]


def test_rays_that_miss_show_background_and_give_no_gradient() -> None:
    field, volume = random_scene()
    renderer = SDFRenderer(field, BOUNDS, background=(0.2, 0.4, 0.6)).train()
    volume.requires_grad_()
    origins, directions = bad_rays()
    out = renderer(volume, origins, directions)
    assert not out.hit.any()
    assert torch.equal(out.rgb, torch.tensor([0.2, 0.4, 0.6]).expand_as(out.rgb))
    assert (out.opacity == 0).all()
    assert (out.depth == 0).all()
    assert (out.weights == 0).all()
    for value in (out.sdf, out.gradient, out.edges):
        assert torch.isfinite(value).all()
    (out.rgb.sum() + out.depth.sum() + out.opacity.sum() + out.weights.sum()).backward()
    assert volume.grad is not None
    assert (volume.grad == 0).all()
    assert all(p.grad is None or (p.grad == 0).all() for p in field.parameters())


def test_rays_that_miss_leave_the_others_alone() -> None:
    field, volume = random_scene()
    renderer = SDFRenderer(field, BOUNDS).eval()
    good, bad = fan(), bad_rays()
    alone = renderer(volume, *good)
    mixed = renderer(volume, *(torch.cat((b, g, b), 1) for g, b in zip(good, bad, strict=True)))
    assert mixed.hit.tolist() == [[False] * 8 + [True] * 9 + [False] * 8]
    torch.testing.assert_close(mixed.map(lambda t: t[:, 8:17]).rgb, alone.rgb)
    torch.testing.assert_close(mixed.map(lambda t: t[:, 8:17]).depth, alone.depth)


def test_axis_parallel_rays_on_a_face_and_from_outside() -> None:
    renderer = SDFRenderer(plane_field(False, 0.0), BOUNDS)
    origins = torch.tensor([[[-50.0, 0, 0], [0, 0, 0], [0, 0, 4.5], [-1.0, 40.5, 0]]])
    directions = torch.tensor([[[1.0, 0, 0], [0, 0, 1.0], [1.0, 0, 0], [0, -1.0, 0]]])
    near, far, hit = renderer.extents(origins, directions)
    assert hit.tolist() == [[True, True, False, True]]
    assert near[0, [0, 1, 3]].tolist() == pytest.approx([10.0, 1.0, 1.0])
    assert far[0, [0, 1, 3]].tolist() == pytest.approx([90.0, 4.0, 80.5])


@pytest.mark.parametrize("seed", range(4))
def test_weights_sum_to_at_most_one_and_depth_stays_on_its_ray(seed: int) -> None:
    field, volume = random_scene(seed)
    with torch.no_grad():
        field.deviation_network.variance.fill_([0.1, 0.3, 0.6, 1.0][seed])
    renderer = SDFRenderer(field, BOUNDS).train()
    origins, directions = fan(40)
    origins = origins + torch.randn(1, 40, 3) * torch.tensor([15.0, 15.0, 1.0])
    out = renderer(volume * 3, origins, directions)
    assert (out.weights >= 0).all()
    assert (out.weights.sum(-1) <= 1 + 1e-5).all()
    torch.testing.assert_close(out.weights.sum(-1), out.opacity)
    near, far, hit = renderer.extents(origins, directions)
    assert (out.depth[hit] >= near[hit] - 1e-4).all()
    assert (out.depth[hit] <= far[hit] + 1e-4).all()
    assert ((out.rgb >= 0) & (out.rgb <= 1 + 1e-5)).all()
    assert (out.edges.diff(dim=-1) >= 0).all()


@pytest.mark.parametrize("training", [False, True])
def test_chunks_change_nothing(training: bool) -> None:
    field, volume = random_scene()
    origins, directions = fan(11)
    jitter = torch.rand(1, 11, 2) if training else None
    whole = SDFRenderer(field, BOUNDS).train(training)(volume, origins, directions, jitter=jitter)
    parts = SDFRenderer(field, BOUNDS, chunk=4).train(training)(volume, origins, directions, jitter=jitter)
    for name in RenderOutput.__dataclass_fields__:
        # Not to the bit: a matrix product of another size may round otherwise.
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-4, atol=1e-3, msg=name)


# ---- whole images


def image_rays(rows: int = 6, columns: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """A camera at (1, 0.5, 0.2) m that looks along x: its place (1, 1, 1, 3) and directions (1, rows, columns, 3)."""
    y, z = torch.meshgrid(torch.linspace(-0.2, 0.2, rows), torch.linspace(-0.6, 0.6, columns), indexing="ij")
    directions = torch.nn.functional.normalize(torch.stack([torch.ones_like(y), z, y], -1), dim=-1)[None]
    return torch.tensor([1.0, 0.5, 0.2]).reshape(1, 1, 1, 3), directions


def least(renderer: SDFRenderer, volume: torch.Tensor, rays: int, directions: torch.Tensor) -> int:
    """Bytes with which a pass takes ``rays`` rays and no more."""
    per_ray = volume.shape[0] * 96 * renderer._bytes_per_sample(volume.shape[1], 4)
    return 3 * 4 * volume.numel() + 4 * directions.numel() + rays * per_ray


@pytest.mark.parametrize("rays", [1, 5, 48])
def test_a_view_is_what_single_rays_show_whatever_the_memory(rays: int, monkeypatch: pytest.MonkeyPatch) -> None:
    field, volume = random_scene()
    renderer = SDFRenderer(field, BOUNDS, background=(0.2, 0.4, 0.6)).train()  # a view is evaluation all the same
    origin, directions = image_rays()
    directions[0, 0, 0] = 0.0  # no ray
    passes = []
    march = renderer._march
    monkeypatch.setattr(renderer, "_march", lambda v, o, *rest: passes.append(o.shape[1]) or march(v, o, *rest))
    view = renderer.view(volume, origin, directions, memory=least(renderer, volume, rays, directions))
    assert passes == [min(rays, 48 - first) for first in range(0, 48, rays)]
    origins = origin.expand_as(directions)
    single = renderer.eval()(volume, origins.flatten(1, 2), directions.flatten(1, 2)).reshape(1, 6, 8)
    for name in ("rgb", "depth", "opacity", "hit"):
        # Not to the bit: a matrix product of another size may round otherwise.
        torch.testing.assert_close(getattr(view, name), getattr(single, name), rtol=1e-4, atol=1e-3, msg=name)
    normal = (single.weights[..., None] * single.gradient).sum(-2)
    torch.testing.assert_close(view.normal, torch.nn.functional.normalize(normal, dim=-1), rtol=1e-3, atol=1e-3)
    assert not view.hit[0, 0, 0]
    assert not view.normal[0, 0, 0].any()
    assert not view.rgb.requires_grad


def test_a_view_of_a_plane_shows_its_normal() -> None:
    renderer = SDFRenderer(plane_field(False, 0.5), BOUNDS)
    view = renderer.view(x_volume(), *image_rays())
    assert view.normal.shape == (1, 6, 8, 3)
    torch.testing.assert_close(view.normal, torch.tensor([-1.0, 0, 0]).expand_as(view.normal), rtol=0, atol=1e-4)


def test_too_little_memory_for_one_ray_is_refused() -> None:
    field, volume = random_scene()
    renderer = SDFRenderer(field, BOUNDS)
    rays = image_rays()
    enough = least(renderer, volume, 1, rays[1])
    with pytest.raises(ValueError, match=f"memory is {enough - 1} bytes, wanted at least {enough}"):
        renderer.view(volume, *rays, memory=enough - 1)
    renderer.view(volume, *rays, memory=enough)
    with pytest.raises(ValueError, match=r"directions has shape \(1, 6, 8, 3\), wanted \(2, \.\.\., 3\)"):
        renderer.view(volume.expand(2, -1, -1, -1, -1), *rays)


def test_views_of_no_rays_and_of_several_scenes() -> None:
    field, volume = random_scene()
    renderer = SDFRenderer(field, BOUNDS)
    assert renderer.view(volume, torch.zeros(1, 0, 3), torch.zeros(1, 0, 3)).rgb.shape == (1, 0, 3)
    alone = renderer.view(volume, torch.zeros(1, 3), torch.eye(3)[:1])  # one ray a scene
    assert [t.shape for t in (alone.rgb, alone.depth, alone.hit)] == [(1, 3), (1,), (1,)]
    two = torch.cat([volume, volume.flip(-1)])
    origin, directions = image_rays(3, 2)
    both = renderer.view(two, origin, directions.expand(2, 3, 2, 3), memory=2**24)
    for i in range(2):
        one = renderer.view(two[i : i + 1], origin, directions)
        torch.testing.assert_close(both.depth[i : i + 1], one.depth, rtol=1e-4, atol=1e-3)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak of memory from Linux")
def test_the_peak_of_memory_obeys_the_limit() -> None:
    """In a process of its own that gives memory back at once: what it holds is what it asked for."""
    program = """
import contextlib, json, torch
from mim4d import ops
from mim4d.nn import SDFField, SDFRenderer

def peak(reset=False):
    if reset:
        open("/proc/self/clear_refs", "w").write("5")
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

torch.manual_seed(0)
torch.set_num_threads(1)
renderer = SDFRenderer(SDFField(32), (-40.0, -40.0, -4.0, 40.0, 40.0, 4.0), n_uniform=24, n_importance=8)
volume = torch.randn(1, 32, 4, 40, 40)
directions = torch.nn.functional.normalize(torch.randn(1, 40, 200, 3), dim=-1)
used = []
for way in (contextlib.nullcontext(), ops.use_backend("reference")):
    with way:
        renderer.view(volume, torch.zeros(3), directions[:, :1], memory=2**26)  # what libraries set up once
        for memory in (2**24, 2**26, 2**30):
            before = peak(reset=True)
            view = renderer.view(volume, torch.zeros(3), directions, memory=memory)
            used.append(peak() - before)
print(json.dumps(used))
"""
    done = python(program, MALLOC_MMAP_THRESHOLD_="65536")
    assert done.returncode == 0, done.stderr
    best, reference = (json.loads(done.stdout)[i : i + 3] for i in (0, 3))
    result = 8000 * (8 * 4 + 1)
    for used in (best, reference):
        for got, memory in zip(used, (2**24, 2**26, 2**30), strict=True):
            assert got <= memory + result, (best, reference)
    assert reference[2] > 2**27, "without a limit it would take more: the limits above are felt"


def test_jitter_is_drawn_in_training_only() -> None:
    field, volume = random_scene()
    renderer = SDFRenderer(field, BOUNDS)
    rays = fan()
    assert torch.equal(renderer.eval()(volume, *rays).edges, renderer(volume, *rays).edges)
    torch.manual_seed(0)
    first = renderer.train()(volume, *rays).edges
    assert not torch.equal(first, renderer(volume, *rays).edges)
    torch.manual_seed(0)
    assert torch.equal(first, renderer(volume, *rays).edges)


def test_the_same_scene_twice_as_large() -> None:
    """All lengths doubled: depths and distances double, weights, colours and normals stay."""
    field, volume = random_scene()
    origins, directions = fan()
    double = tuple(2 * b for b in BOUNDS)
    small = SDFRenderer(field, BOUNDS, near=1.0).eval()(volume, origins, directions)
    large = SDFRenderer(field, double, near=2.0).eval()(volume, 2 * origins, directions)
    for name, factor in (("depth", 2), ("sdf", 2), ("edges", 2), ("rgb", 1), ("weights", 1), ("gradient", 1)):
        torch.testing.assert_close(getattr(large, name), factor * getattr(small, name), msg=name)


def test_sdf_at_points_is_what_the_rays_read() -> None:
    field, volume = random_scene()
    renderer = SDFRenderer(field, BOUNDS).eval()
    origins, directions = fan()
    out = renderer(volume, origins, directions)
    points = origins[..., None, :] + out.edges[..., :-1, None] * directions[..., None, :]  # (1, R, S, 3)
    torch.testing.assert_close(renderer.sdf(volume, points), out.sdf, rtol=1e-4, atol=1e-3)


def test_rendering_is_fp32_under_autocast() -> None:
    field, volume = random_scene()
    renderer = SDFRenderer(field, BOUNDS).eval()
    plain = renderer(volume, *fan())
    with torch.autocast("cpu", torch.bfloat16):
        inside = renderer(volume, *fan())
    for name in RenderOutput.__dataclass_fields__:
        assert torch.equal(getattr(inside, name), getattr(plain, name)), name
    half = renderer(volume.bfloat16(), *fan())
    assert half.depth.dtype == torch.float32


def test_gradients_are_finite_and_reach_every_parameter() -> None:
    field, volume = random_scene()
    renderer = SDFRenderer(field, BOUNDS).train()
    volume.requires_grad_()
    out = renderer(volume, *fan(30))
    (out.rgb.sum() + out.depth.sum()).backward()
    for name, parameter in field.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name
    assert volume.grad is not None
    assert torch.isfinite(volume.grad).all()


def test_no_rays_and_reshaping() -> None:
    field, volume = random_scene()
    renderer = SDFRenderer(field, BOUNDS).eval()
    empty = renderer(volume, torch.zeros(1, 0, 3), torch.zeros(1, 0, 3))
    assert empty.rgb.shape == (1, 0, 3)
    assert empty.weights.shape == (1, 0, 96)
    out = renderer(volume, *fan(6)).reshape(1, 2, 3)
    assert out.rgb.shape == (1, 2, 3, 3)
    assert out.edges.shape == (1, 2, 3, 97)
    assert out.hit.shape == (1, 2, 3)


def test_field_names_sizes_and_start_are_those_of_the_method() -> None:
    field = SDFField()
    names = set(field.state_dict())
    wanted = {"deviation_network.variance"}
    for decoder, layers in (("sdf_decoder", 6), ("rgb_decoder", 4)):
        for part in ("weight", "bias"):
            wanted.add(f"{decoder}.fc_p.{part}")
            for l in range(layers):
                wanted |= {f"{decoder}.lin{l}.{part}", f"{decoder}.fc_c.{l}.{part}"}
    assert names == wanted
    assert sum(p.numel() for p in field.sdf_decoder.parameters()) == 4881
    assert sum(p.numel() for p in field.rgb_decoder.parameters()) == 4451
    assert field.inv_s().shape == ()
    assert field.inv_s().item() == pytest.approx(math.exp(3.0))
    state = field.state_dict()
    for weights, decoder, layers in ((field.sdf_weights(), "sdf_decoder", 6), (field.rgb_weights(), "rgb_decoder", 4)):
        order = [f"{decoder}.fc_p.weight", f"{decoder}.fc_p.bias"]
        for l in range(layers):
            order += [f"{decoder}.{part}.{kind}" for part in (f"lin{l}", f"fc_c.{l}") for kind in ("weight", "bias")]
        assert [w.data_ptr() for w in weights] == [state[name].data_ptr() for name in order]


def test_released_weights_load() -> None:
    """The field's names below a detector's, beside a density that only the authors have, and weights of other parts."""
    g = torch.Generator().manual_seed(3)
    shapes = {"deviation_network.variance": (1,), "some_density.beta": (1,)}
    for decoder, layers, condition, out in (("sdf_decoder", 6, 32, 17), ("rgb_decoder", 4, 54, 3)):
        shapes |= {f"{decoder}.fc_p.weight": (16, 3), f"{decoder}.fc_p.bias": (16,)}
        for l in range(layers):
            width = 16 if l < layers - 1 else out
            shapes |= {f"{decoder}.lin{l}.weight": (width, 16), f"{decoder}.lin{l}.bias": (width,)}
            shapes |= {f"{decoder}.fc_c.{l}.weight": (16, condition), f"{decoder}.fc_c.{l}.bias": (16,)}
    state = {f"head.render_model.field.{name}": torch.randn(shape, generator=g) for name, shape in shapes.items()}
    state["backbone.stem.weight"] = torch.randn(3, generator=g)
    field = SDFField()
    assert field.load_released(state) == ["some_density.beta"]
    for name, value in field.state_dict().items():
        assert torch.equal(value, state[f"head.render_model.field.{name}"]), name
    before = field.sdf_decoder.fc_p.weight.clone()
    state["head.render_model.field.sdf_decoder.fc_p.weight"] = torch.zeros(16, 3)
    del state["head.render_model.field.rgb_decoder.lin3.bias"]
    with pytest.raises(ValueError, match=r"rgb_decoder.lin3.bias is missing, wanted \(3,\)"):
        field.load_released(state)
    assert torch.equal(field.sdf_decoder.fc_p.weight, before)
    with pytest.raises(ValueError, match=r"fc_c.0.weight is \(16, 32\), wanted \(16, 8\)"):
        SDFField(8).load_released(state)
    with pytest.raises(ValueError, match=r"sdf_decoder.fc_p.weight is missing, wanted \(16, 3\); .* \.\.\."):
        field.load_released({})


def test_sharpness_is_clipped() -> None:
    field = SDFField()
    with torch.no_grad():
        field.deviation_network.variance.fill_(5.0)
        assert field.inv_s().item() == pytest.approx(1e6)
        field.deviation_network.variance.fill_(-5.0)
        assert field.inv_s().item() == pytest.approx(1e-6)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="bounds"):
        SDFRenderer(SDFField(), (0, 0, 0, 1, 1, 0))
    for options in ({"n_uniform": 0}, {"n_importance": -1}, {"near": 0.0}, {"chunk": 0}):
        with pytest.raises(ValueError, match="SDFRenderer"):
            SDFRenderer(SDFField(), BOUNDS, **options)
