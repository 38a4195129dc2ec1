"""The losses of a rendered field: closed forms, gradients, and all of them on what the renderer returns."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from helpers.fields import BOUNDS, fan, plane_field, random_scene, x_volume
from torch import Tensor

from mim4d import nn, ops

PATHS = pytest.mark.parametrize("run", [lambda: ops.use_backend("reference"), nullcontext], ids=["reference", "best"])


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- closed forms


def test_eikonal_is_the_squared_error_of_the_slope() -> None:
    gradient = torch.tensor([[[3.0, 4.0, 0.0], [0.0, 0.0, 1.0]], [[0.0, 0.0, 0.0], [0.0, 100.0, 0.0]]])  # (2, 2, 3)
    assert nn.eikonal_loss(gradient, torch.tensor([True, False])) == pytest.approx((4.0**2 + 0) / 2)
    assert nn.eikonal_loss(gradient[1:, :1], torch.tensor([True])) == 1.0


def wall_seen_head_on(error: float) -> tuple[Tensor, Tensor, Tensor]:
    """A ray onto a wall 10 m ahead, read every metre to 12 m: a true distance field plus an error."""
    t = torch.arange(0.0, 13.0)[None]  # (1, 13)
    return (10 - t) + error, t, torch.tensor([10.0])


MEASURED = torch.tensor([True])


def test_a_true_distance_field_costs_nothing() -> None:
    scene = wall_seen_head_on(0.0)
    assert nn.free_space_loss(*scene, MEASURED, 1.5) == 0
    assert nn.truncation_loss(*scene, MEASURED, 1.5) == 0


@pytest.mark.parametrize("error", [0.25, -0.25])
def test_free_space_bounds_the_distance_from_both_sides(error: float) -> None:
    """Nine samples, t = 0 to 8, are farther than 1.5 m from the wall."""
    found = nn.free_space_loss(*wall_seen_head_on(error), MEASURED, 1.5)
    assert found == pytest.approx(0.25 if error > 0 else 0.0)  # 8 - 0.25 is still above 1.5
    zero = torch.zeros(1, 13)
    _, t, depth = wall_seen_head_on(0.0)
    assert nn.free_space_loss(zero, t, depth, MEASURED, 1.5) == pytest.approx(1.5)  # a surface everywhere


@pytest.mark.parametrize("error", [0.25, -0.25])
def test_truncation_is_the_error_near_the_surface_alone(error: float) -> None:
    sdf, t, depth = wall_seen_head_on(error)
    assert nn.truncation_loss(sdf, t, depth, MEASURED, 1.5) == pytest.approx(0.25)
    sdf[0, [0, 5, 8, 12]] = 99.0  # 10, 5, 2 m before and 2 m behind
    assert nn.truncation_loss(sdf, t, depth, MEASURED, 1.5) == pytest.approx(0.25)
    sdf[0, 11] = 99.0  # 1 m behind
    assert nn.truncation_loss(sdf, t, depth, MEASURED, 1.5) > 1


def test_points_on_surfaces_have_distance_zero() -> None:
    sdf = torch.tensor([0.5, -1.5, 7.0])
    assert nn.sparse_point_loss(sdf, torch.tensor([True, True, False])) == 1.0


def test_structural_similarity_of_known_windows() -> None:
    x = torch.rand(2, 3, 7, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert nn.ssim(x, x, 3).shape == (2, 3, 5, 7)
    torch.testing.assert_close(nn.ssim(x, x, 3), torch.ones(2, 3, 5, 7, dtype=torch.float64))
    flat, other = torch.full((4, 4), 0.5), torch.full((4, 4), 0.25)  # no variance: what is left is the means' term
    wanted = (2 * 0.5 * 0.25 + 1e-4) / (0.5**2 + 0.25**2 + 1e-4)
    torch.testing.assert_close(nn.ssim(flat, other, 4), torch.tensor([[wanted]]))
    edge = torch.tensor([[0.0, 1.0]]).expand(2, 2)  # mean 1/2, variance 1/4; mirrored: covariance -1/4
    torch.testing.assert_close(nn.ssim(edge, 1 - edge, 2), torch.tensor([[(-0.5 + 9e-4) / (0.5 + 9e-4)]]))
    assert nn.ssim_loss(edge[None], 1 - edge[None], torch.tensor(True), 2) == pytest.approx(
        (1 - (-0.5 + 9e-4) / (0.5 + 9e-4)) / 2
    )


def test_structural_similarity_against_the_formula_written_out() -> None:
    x, y = (torch.rand(5, 6, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (1, 2))
    found = nn.ssim(x, y, 3)
    for i in range(3):
        for j in range(4):
            a, b = x[i : i + 3, j : j + 3].flatten(), y[i : i + 3, j : j + 3].flatten()
            cov = torch.cov(torch.stack([a, b]), correction=0)
            wanted = (2 * a.mean() * b.mean() + 1e-4) * (2 * cov[0, 1] + 9e-4)
            wanted /= (a.mean() ** 2 + b.mean() ** 2 + 1e-4) * (cov[0, 0] + cov[1, 1] + 9e-4)
            assert found[i, j] == pytest.approx(float(wanted), rel=1e-12)


def test_a_flat_bright_picture_does_not_cancel() -> None:
    """float32: 0.9^2 - 0.9^2 would leave 1e-7 beside c_2 = 9e-4, once per pixel of a larger sum."""
    flat = torch.full((1, 64, 64), 0.9)
    noisy = flat + 1e-4 * torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        nn.ssim(flat, noisy), nn.ssim(flat.double(), noisy.double()).float(), rtol=0, atol=2e-6
    )  # measured 4e-7


def test_pictures_that_do_not_fit_are_refused() -> None:
    for x, y in ((torch.zeros(2, 2), torch.zeros(2, 2)), (torch.zeros(4, 4), torch.zeros(4, 5))):
        with pytest.raises(ValueError, match="ssim: image has shape"):
            nn.ssim(x, y, 3)


# ---- gradients

MASK = torch.tensor([True, False, True])
LOSSES: dict[str, tuple[Callable[..., Tensor], Tensor]] = {
    "eikonal": (lambda g: nn.eikonal_loss(g, MASK), seeded(3, 4, 3)),
    "free_space": (
        lambda f: nn.free_space_loss(f, torch.arange(4.0).expand(3, 4), torch.full((3,), 2.5), MASK, 0.7),
        seeded(3, 4),
    ),
    "truncation": (
        lambda f: nn.truncation_loss(f, torch.arange(4.0).expand(3, 4), torch.full((3,), 2.2), MASK, 0.7),
        seeded(3, 4),
    ),
    "sparse_point": (lambda f: nn.sparse_point_loss(f, MASK), seeded(3)),
    "ssim": (lambda x: nn.ssim_loss(x, seeded(3, 2, 4, 4, seed=1).sigmoid(), MASK), seeded(3, 2, 4, 4).sigmoid()),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name: str) -> None:
    loss, x = LOSSES[name]
    assert torch.autograd.gradcheck(loss, x.clone().requires_grad_())
    (grad,) = torch.autograd.grad(loss(y := x.clone().requires_grad_()), y)
    assert grad[[0, 2]].abs().sum() > 0
    assert not grad[1].any(), "what is not marked gives no gradient"


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_marked_is_a_loss_of_zero(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "MASK", torch.zeros(3, dtype=torch.bool))
    loss, x = LOSSES[name]
    x = x.clone().requires_grad_()
    value = loss(x)
    assert value == 0
    (grad,) = torch.autograd.grad(value, x)
    assert not grad.any()


def test_eikonal_has_a_finite_gradient_where_there_is_no_slope() -> None:
    g = torch.zeros(1, 2, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(nn.eikonal_loss(g, torch.tensor([True])), g)
    assert not grad.any()


# ---- on what the renderer returns


@PATHS
def test_a_plane_seen_head_on_is_free_of_loss(run: Callable[[], AbstractContextManager]) -> None:
    """The field x0 - x in scaled units is a distance in metres too, with slope 1, and zero at the wall."""
    with run():
        renderer = nn.SDFRenderer(plane_field(False, 0.5), BOUNDS).eval()  # a wall at x = 20 m
        origins, directions = torch.tensor([[[1.0, 0.5, 0.2]]]), torch.tensor([[[1.0, 0.0, 0.0]]])
        out = renderer(x_volume(), origins, directions)
        wall, hit = torch.tensor([[19.0]]), out.hit
        along = (out.sdf, out.edges[..., :-1], wall, hit, 2.0)
        # float32 of up to 40 m: measured below 1e-5
        assert nn.eikonal_loss(out.gradient, hit) < 1e-6
        assert nn.free_space_loss(*along) < 1e-4
        assert nn.truncation_loss(*along) < 1e-4
        at_wall = renderer(x_volume(), origins, directions, edges=torch.tensor([[[19.0, 19.5]]]))
        assert nn.sparse_point_loss(at_wall.sdf[..., 0], hit) < 1e-4
        points = origins + wall[..., None] * directions
        assert nn.sparse_point_loss(renderer.sdf(x_volume(), points), hit) < 1e-4


def field_losses(out: nn.RenderOutput, depth: Tensor, pictures: Tensor) -> dict[str, Tensor]:
    along = (out.sdf, out.edges[..., :-1], depth, out.hit)
    square = lambda rgb: rgb.unflatten(1, (-1, 3, 3)).movedim(-1, -3)  # (B, R / 9, 3, 3, 3)
    return {
        "eikonal": nn.eikonal_loss(out.gradient, out.hit),
        "free_space": nn.free_space_loss(*along, 2.0),
        "truncation": nn.truncation_loss(*along, 5.0),
        "sparse_point": nn.sparse_point_loss(out.sdf[..., 0], out.hit),
        "ssim": nn.ssim_loss(square(out.rgb), square(pictures), out.hit[:, ::9]),
    }


@pytest.mark.parametrize("name", ["eikonal", "free_space", "truncation", "sparse_point", "ssim"])
def test_gradients_reach_volume_and_weights_through_the_fused_op(name: str) -> None:
    """The fused op's first-order backward against double backward (``create_graph``) of the reference, in float64; no
    loss here needs a second derivative of the op."""
    field, volume = random_scene(3)
    field, volume = field.double(), volume.double()
    renderer = nn.SDFRenderer(field, BOUNDS, n_uniform=12, n_importance=4).eval()
    origins, directions = (t.double() for t in fan(18))
    edges = torch.linspace(1.0, 30.0, 17, dtype=torch.float64).expand(1, 18, 17)
    depth = torch.linspace(5.0, 25.0, 18, dtype=torch.float64)[None]
    pictures = seeded(1, 18, 3).sigmoid()
    found = {}
    for backend in ("reference", "cpu"):
        leaves = [volume.clone().requires_grad_(), *field.parameters()]
        with ops.use_backend(backend):
            out = renderer(leaves[0], origins, directions, edges=edges)
            loss = field_losses(out, depth, pictures)[name]
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
        found[backend] = [loss, *(torch.zeros_like(p) if g is None else g for p, g in zip(leaves, grads, strict=True))]
    assert found["cpu"][0] > 0
    assert found["cpu"][1].abs().sum() > 0
    for got, want in zip(found["cpu"], found["reference"], strict=True):
        # measured below 1e-11 of the largest entry
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8 * max(1e-3, float(want.detach().abs().max())))
