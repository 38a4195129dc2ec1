"""The whole model on a tiny clip: gradients, masks, missing frames, units, single frames, learning."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from mim4d import nn
from mim4d.data.clips import ClipBatch
from mim4d.data.rays import Rays
from mim4d.errors import UserError
from mim4d.models import MIM4D, ModelConfig, build_model
from mim4d.models.render_decoder import RenderDecoder

TINY = ModelConfig(
    bounds=(-16.0, -16.0, -2.0, 16.0, 16.0, 4.0),
    grid=(8, 8, 3),
    channels=8,
    backbone="convnext_atto",
    pretrained=False,
    drop_path=0.0,
    feature_stride=16,
    neck_channels=16,
    lift_channels=8,
    depth_bins=8,
    depth_max=17.0,
    mask_block=16,
    short_dim=16,
    short_heads=2,
    long_dim=8,
    long_heads=1,
    points=2,
    n_uniform=12,
    n_importance=4,
)


def tiny_batch(
    b: int = 2, t: int = 3, n: int = 2, k: int = 2, r: int = 6, size: tuple[int, int] = (32, 64)
) -> ClipBatch:
    """Clips over flat ground, 1.5 m below level cameras that look forward and backward; the ego drives at 4 m/s."""
    torch.manual_seed(0)
    height, width = size
    focal = width / 2
    intrinsics = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    poses = []
    for camera in range(n):
        yaw = 2 * math.pi * camera / n
        c, s = math.cos(yaw), math.sin(yaw)
        poses.append([[s, 0, c, c], [-c, 0, s, s], [0, -1, 0, 1.5], [0, 0, 0, 1]])
    frame_from_cam = torch.tensor(poses)  # (N, 4, 4)
    offsets = (torch.arange(t) - t // 2) * 0.5
    key_from_frame = torch.eye(4).repeat(t, 1, 1)
    key_from_frame[:, 0, 3] = 4.0 * offsets
    pixels = torch.rand(b, k, n, r, 2) * torch.tensor([width, height * 0.4]) + torch.tensor([0, height * 0.6])
    ray = torch.cat(((pixels - torch.tensor([width / 2, height / 2])) / focal, torch.ones(b, k, n, r, 1)), -1)
    directions = torch.einsum("nij,bknrj->bknri", frame_from_cam[:, :3, :3], ray)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    depth = 1.5 / -directions[..., 2]
    return ClipBatch(
        images=torch.rand(b, t, n, 3, height, width),
        content=size,
        intrinsics=intrinsics.expand(b, t, n, 3, 3).clone(),
        frame_from_cam=frame_from_cam.expand(b, t, n, 4, 4).clone(),
        key_from_frame=key_from_frame.expand(b, t, 4, 4).clone(),
        offsets=offsets.expand(b, t).clone(),
        valid=torch.ones(b, t, dtype=torch.bool),
        key=t // 2,
        targets=torch.tensor([t // 2, (t // 2 + 1) % t])[:k].expand(b, -1).clone(),
        target_valid=torch.ones(b, k, dtype=torch.bool),
        rays=Rays(
            origins=frame_from_cam[:, None, :3, 3].expand(b, k, n, r, 3).clone(),
            directions=directions,
            rgb=torch.rand(b, k, n, r, 3) * 0.2 + 0.5,
            depth=depth,
            has_depth=depth < 14,
            pixels=pixels,
        ),
        tokens=["clip"] * b,
    )


def model(**options) -> MIM4D:
    torch.manual_seed(0)
    return build_model(replace(TINY, **options))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    "t, local, way", [(1, False, "push"), (1, True, "pull"), (3, False, "pull"), (3, True, "push")]
)
def test_forward_and_backward(t: int, local: bool, way: str) -> None:
    net = model(local_mask=local, view_transform=way).train()
    batch = tiny_batch(t=t, k=min(t, 2))
    out = net(batch, generator())
    assert torch.isfinite(out.loss)
    paths = ["direct"] if t == 1 else ["direct", "reconstructed"]
    assert list(out.losses) == [f"{kind}_{path}" for path in paths for kind in ("rgb", "depth")]
    assert list(out.metrics) == [f"{kind}_{path}" for path in paths for kind in ("rgb_l1", "depth_l1_m")]
    torch.testing.assert_close(out.loss, sum(out.losses.values()))
    assert out.direct is not None
    assert out.direct.rgb.shape == (2, min(t, 2), 2, 6, 3)
    assert (out.reconstructed is None) == (t == 1)
    assert (out.motion is None) == (t == 1)
    assert out.image_mask is not None
    assert out.image_mask.shape == (2, t, 2, 32, 64)
    out.loss.backward()
    for name, parameter in net.named_parameters():
        if name.startswith("voxel_decoder") and t == 1:
            assert parameter.grad is None, name
            continue
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_losses_and_metrics_are_what_they_say() -> None:
    net, batch = model(rgb_weight=3.0, depth_weight=5.0).eval(), tiny_batch()
    out = net(batch)
    for path, render in (("direct", out.direct), ("reconstructed", out.reconstructed)):
        rgb = (render.rgb - batch.rays.rgb).abs().mean()
        metres = (render.depth - batch.rays.depth).abs()[batch.rays.has_depth].mean()
        torch.testing.assert_close(out.metrics[f"rgb_l1_{path}"], rgb)
        torch.testing.assert_close(out.metrics[f"depth_l1_m_{path}"], metres)
        torch.testing.assert_close(out.losses[f"rgb_{path}"], 3 * rgb)
        torch.testing.assert_close(out.losses[f"depth_{path}"], 5 * metres / 16)  # the box reaches to 16 m


OPTIONAL = {  # option -> its loss, its metric
    "eikonal_weight": ("eikonal", "eikonal_error"),
    "free_space_weight": ("free_space", "free_space_m"),
    "truncation_weight": ("truncation", "truncation_m"),
    "sparse_point_weight": ("sparse_point", "sparse_point_m"),
    "ssim_weight": ("ssim", "ssim_error"),
}


def test_optional_losses_are_what_they_say() -> None:
    net = model(**dict.fromkeys(OPTIONAL, 3.0), truncation=2.0).eval()
    batch = replace(tiny_batch(r=18), patch=3)
    batch.rays.directions[0, 0, 0, 0] = 0.0  # a ray that misses
    heard = {}
    net.voxel_encoder.register_forward_hook(lambda module, given, out: heard.update(direct=out[:, [1, 2]]))
    net.voxel_decoder.register_forward_hook(lambda module, given, out: heard.update(reconstructed=out[0]))
    out = net(batch)
    rays = batch.rays
    for path, render in (("direct", out.direct), ("reconstructed", out.reconstructed)):
        surface = rays.has_depth & render.hit
        points = rays.origins + rays.depth[..., None] * rays.directions
        at_points = torch.stack(
            [net.renderer.sdf(heard[path][:, k], points[:, k].flatten(1, 2)).unflatten(1, (2, 18)) for k in range(2)], 1
        )
        along = (render.sdf, render.edges[..., :-1], rays.depth, surface, 2.0)
        pictures = [c.reshape(2, 2, 2, 2, 3, 3, 3).permute(0, 1, 2, 3, 6, 4, 5) for c in (render.rgb, rays.rgb)]
        whole = torch.ones(2, 2, 2, 2, dtype=torch.bool)
        wanted = {
            "eikonal_weight": (nn.eikonal_loss(render.gradient, render.hit), 1.0),
            "free_space_weight": (nn.free_space_loss(*along), 16.0),  # the box reaches to 16 m
            "truncation_weight": (nn.truncation_loss(*along), 16.0),
            "sparse_point_weight": (nn.sparse_point_loss(at_points, surface), 16.0),
            "ssim_weight": (nn.ssim_loss(*pictures, whole), 1.0),
        }
        for option, (value, unit) in wanted.items():
            loss, metric = OPTIONAL[option]
            assert value > 0, option
            torch.testing.assert_close(out.metrics[f"{metric}_{path}"], value, msg=option)
            torch.testing.assert_close(out.losses[f"{loss}_{path}"], 3 * value / unit, msg=option)
    torch.testing.assert_close(out.loss, sum(out.losses.values()))


@pytest.mark.parametrize("option", OPTIONAL)
def test_an_optional_loss_stands_in_the_results_where_it_is_on(option: str) -> None:
    net, batch = model(**{option: 1.0}, truncation=2.0).train(), replace(tiny_batch(r=9), patch=3)
    out = net(batch, generator())
    loss, metric = OPTIONAL[option]
    paths = ("direct", "reconstructed")
    assert set(out.losses) == {f"{name}_{path}" for name in ("rgb", "depth", loss) for path in paths}
    assert set(out.metrics) == {f"{name}_{path}" for name in ("rgb_l1", "depth_l1_m", metric) for path in paths}
    out.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
    batch.rays.has_depth[:] = False
    again = net(batch, generator())
    if option in ("eikonal_weight", "ssim_weight"):  # they need no LiDAR
        assert again.metrics[f"{metric}_direct"].isfinite()
    else:
        assert again.losses[f"{loss}_direct"] == 0
        assert again.metrics[f"{metric}_direct"].isnan()


def test_single_rays_have_no_structure() -> None:
    out = model(ssim_weight=1.0).eval()(tiny_batch())  # evaluation draws single rays
    assert list(out.losses) == [f"{kind}_{path}" for path in ("direct", "reconstructed") for kind in ("rgb", "depth")]


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(ValueError, match=r"weights names \['silog'\]"):
        RenderDecoder(model().renderer, {"silog": 1.0})


def test_each_path_can_be_switched_off() -> None:
    batch = tiny_batch()
    only_direct = model(reconstructed=False).eval()
    out = only_direct(batch)
    assert list(out.losses) == ["rgb_direct", "depth_direct"]
    assert only_direct.voxel_decoder is None
    only_reconstructed = model(direct=False).eval()
    out = only_reconstructed(batch)
    assert list(out.losses) == ["rgb_reconstructed", "depth_reconstructed"]
    assert out.direct is None
    with pytest.raises(UserError, match="single frame"):
        only_reconstructed(tiny_batch(t=1, k=1))
    volume = torch.zeros(2, 3, 8, 3, 8, 8)
    with pytest.raises(ValueError, match="without a decoder"):
        only_direct.reconstruct(volume, batch.key_from_frame, batch.offsets, batch.valid, batch.targets)


def test_hidden_pixels_change_nothing_in_the_whole_model() -> None:
    net, batch = model(local_mask=True).train(), tiny_batch()
    out = net(batch, generator())
    hidden = ~out.image_mask
    assert 0.2 < hidden.float().mean() < 0.7
    changed = replace(batch, images=torch.where(hidden[:, :, :, None], torch.rand_like(batch.images), batch.images))
    again = net(changed, generator())
    assert torch.equal(again.image_mask, out.image_mask)
    assert torch.equal(again.loss, out.loss)
    assert torch.equal(again.reconstructed.depth, out.reconstructed.depth)
    seen = replace(batch, images=torch.where(hidden[:, :, :, None], batch.images, 1 - batch.images))
    assert not torch.equal(net(seen, generator()).loss, out.loss)


@pytest.mark.parametrize("backbone", ["convnext_atto", "resnet18"])
def test_a_missing_frame_changes_nothing(backbone: str) -> None:
    net, batch = model(backbone=backbone).train(), tiny_batch()
    batch.valid[:, 0] = False
    state = {key: value.clone() for key, value in net.state_dict().items()}
    out = net(batch, generator())
    changed = replace(batch, **{key: getattr(batch, key).clone() for key in ("images", "key_from_frame", "offsets")})
    changed.images[:, 0] = torch.rand_like(changed.images[:, 0])
    changed.key_from_frame[:, 0, :3, 3] += 5.0
    changed.offsets[:, 0] = 0.1
    net.load_state_dict(state)
    again = net(changed, generator())
    torch.testing.assert_close(again.loss, out.loss, rtol=0, atol=0)
    torch.testing.assert_close(again.reconstructed.rgb, out.reconstructed.rgb, rtol=0, atol=0)


def test_targets_that_cannot_be_rebuilt_or_do_not_exist_count_nothing() -> None:
    net, batch = model().eval(), tiny_batch()
    batch.valid[1] = torch.tensor([False, True, False])  # clip 1 has its key frame alone
    batch.target_valid[1, 1] = False
    batch.rays.directions[1, 1] = 0.0  # a padded target need not even hold rays
    batch.rays.rgb[1] = 0.9
    out = net(batch)
    assert out.reconstructed_valid.tolist() == [[True, True], [False, False]]
    rgb = (out.reconstructed.rgb - batch.rays.rgb).abs()
    torch.testing.assert_close(out.metrics["rgb_l1_reconstructed"], rgb[0].mean())
    direct = (out.direct.rgb - batch.rays.rgb).abs()
    counted = torch.stack((direct[0, 0], direct[0, 1], direct[1, 0]))
    torch.testing.assert_close(out.metrics["rgb_l1_direct"], counted.mean())
    net.train()
    batch.valid[0] = batch.valid[1]
    batch.target_valid[0, 1] = False
    out = net(batch, generator())  # nothing can be rebuilt in the whole batch
    assert out.losses["rgb_reconstructed"].item() == 0
    assert out.metrics["rgb_l1_reconstructed"].isnan()  # not a perfect 0
    assert out.metrics["depth_l1_m_reconstructed"].isnan()
    assert out.metrics["rgb_l1_direct"].isfinite()
    out.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def test_rays_without_lidar_have_no_depth_loss() -> None:
    net, batch = model().train(), tiny_batch()
    batch.rays.has_depth[:] = False
    out = net(batch, generator())
    assert out.losses["depth_direct"].item() == 0
    assert out.metrics["depth_l1_m_direct"].isnan()  # not a perfect 0
    assert out.metrics["rgb_l1_direct"].isfinite()
    assert torch.isfinite(out.loss)


def test_evaluation_hides_nothing_and_draws_nothing() -> None:
    net, batch = model().eval(), tiny_batch()
    first, second = net(batch), net(batch)
    assert first.image_mask is None
    assert torch.equal(first.loss, second.loss)
    net.train()
    assert not torch.equal(net(batch).loss, net(batch).loss)
    assert torch.equal(net(batch, generator()).loss, net(batch, generator()).loss)


@pytest.mark.parametrize("way", ["push", "pull"])
def test_padding_is_never_seen_and_never_lifted(way: str) -> None:
    net, batch = model(view_transform=way).eval(), tiny_batch(size=(32, 64))
    batch = replace(batch, content=(24, 50))
    batch.images[..., 24:, :] = 0
    batch.images[..., 50:] = 0
    out = net(batch)
    assert not out.image_mask[..., 24:, :].any()
    assert not out.image_mask[..., 50:].any()
    assert out.image_mask[..., :24, :50].all()
    filled = replace(batch, images=batch.images.clone())
    filled.images[..., 24:, :] = 0.8
    filled.images[..., 50:] = 0.3
    assert torch.equal(net(filled).loss, out.loss)
    calibration = batch.intrinsics, batch.frame_from_cam
    volume = net.encode(batch.images, *calibration, content=batch.content)
    assert torch.equal(net.encode(filled.images, *calibration, content=batch.content), volume)
    assert not torch.equal(net.encode(filled.images, *calibration), volume)


def test_local_mask_hides_ray_cells_in_target_frames_only() -> None:
    net, batch = model(local_mask=True, mask_ratio=0.0, local_mask_cells=16).train(), tiny_batch(k=1)
    mask = net.draw_mask(batch, generator())
    assert mask[:, [0, 2]].all()  # the key frame is the only target
    cells = 4  # 64 pixels / 16
    for b in range(2):
        for camera in range(2):
            hidden = ~mask[b, 1, camera, ::cells, ::cells]
            wanted = torch.zeros_like(hidden)
            x, y = (batch.rays.pixels[b, 0, camera] // cells).long().unbind(-1)
            wanted[y, x] = True
            assert torch.equal(hidden, wanted)
    batch.target_valid[:] = False
    assert net.draw_mask(batch, generator()).all()


def test_encode_any_size_and_batch_agrees_with_one_by_one() -> None:
    net, batch = model().eval(), tiny_batch(size=(30, 50))
    with torch.no_grad():
        volume = net.encode(batch.images, batch.intrinsics, batch.frame_from_cam)
        assert volume.shape == (2, 3, 8, 3, 8, 8)
        assert (volume >= 0).all()
        alone = net.encode(batch.images[1:, 2:], batch.intrinsics[1:, 2:], batch.frame_from_cam[1:, 2:])
        torch.testing.assert_close(volume[1, 2], alone[0, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["push", "pull"])
def test_autocast_trains_with_fp32_rendering(way: str) -> None:
    net, batch = model(view_transform=way).train(), tiny_batch()
    with torch.autocast("cpu", torch.bfloat16):
        out = net(batch, generator())
    assert out.direct.depth.dtype == torch.float32
    assert out.loss.dtype == torch.float32
    out.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
    with torch.no_grad():
        plain = net(batch, generator())
    assert abs(out.loss.item() - plain.loss.item()) < 0.1 * plain.loss.item()


def test_checkpointing_gives_the_same_gradients() -> None:
    grads = []
    for checkpointing in (False, True):
        net = model(checkpointing=checkpointing).train()
        net(tiny_batch(b=1), generator()).loss.backward()
        grads.append([p.grad for p in net.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_a_state_dict_holds_what_was_learned_and_nothing_else() -> None:
    net = model()
    assert {n for n, _ in net.named_parameters()} == set(net.state_dict())
    torch.manual_seed(5)
    other = build_model(TINY).eval()
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(tiny_batch()).loss, net.eval()(tiny_batch()).loss)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"grid": (0, 8, 3)}, "--model.grid"),
        ({"mask_ratio": 1.0}, "--model.mask-ratio"),
        ({"drop_path": 1.0}, "--model.drop-path"),
        ({"drop_path": float("nan")}, "--model.drop-path"),
        ({"rgb_weight": -1.0}, "--model.rgb-weight"),
        ({"depth_weight": -0.5}, "--model.depth-weight"),
        ({"free_space_weight": -0.5}, "--model.free-space-weight"),
        ({"ssim_weight": float("nan")}, "--model.ssim-weight"),
        ({"truncation": 0.0}, "--model.truncation"),
        ({"background": (0.0, 1.5, 0.0)}, "--model.background"),
        ({"short_heads": 3}, "--model.short-heads"),
        ({"short_dim": 0, "long_dim": 0}, "both 0"),
        ({"depth_min": 60.0}, "--model.depth-min"),
        ({"depth_min": 0.0}, "--model.depth-min 0.0 must be positive to push"),
        ({"view_transform": "shove"}, "--model.view-transform 'shove' must be push or pull"),
        ({"pull_levels": 0}, "--model.pull-levels"),
        ({"view_transform": "pull", "pull_levels": 3}, "--model.pull-levels 3 goes beyond stride 32"),
        ({"direct": False, "reconstructed": False}, "nothing to learn"),
        ({"bounds": (0.0, 0.0, 0.0, 1.0, 1.0, 0.0)}, "--model.bounds"),
    ],
)
def test_options_that_cannot_work_are_named(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        model(**options)


def test_paper_size_is_built_on_the_meta_device() -> None:
    with torch.device("meta"):
        net = build_model(ModelConfig())
    assert all(p.is_meta for p in net.parameters())
    decoder = net.voxel_decoder
    assert decoder is not None
    assert decoder.short.query.shape == (128 * 128, 128)
    assert decoder.long.query.shape == (128 * 128, 64)
    assert net.image_encoder.depth_net.depth.out_channels == 118
    assert net.grid.shape == (5, 128, 128)
    assert sum(p.numel() for p in net.image_encoder.backbone.parameters()) == 49_453_152  # ConvNeXt-S without its head


@pytest.mark.parametrize("seed", range(3))
def test_rays_are_not_saturated_at_the_start(seed: int) -> None:
    """A ray whose weight all lies in its first sections could learn nothing about what is behind."""
    torch.manual_seed(seed)
    net = build_model(replace(TINY, n_uniform=72, n_importance=24)).train()
    out = net(tiny_batch(), generator())
    for render in (out.direct, out.reconstructed):
        first = render.weights[..., :5].sum(-1)
        assert (first > 0.9).float().mean() < 0.5


@pytest.mark.slow
def test_a_few_steps_on_one_scene_lower_the_loss_and_the_depth_error() -> None:
    net, batch = model().train(), tiny_batch(b=1, r=16)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    draws = generator()
    net.eval()
    before = net(batch)
    net.train()
    for _ in range(40):
        optimizer.zero_grad()
        net(batch, draws).loss.backward()
        optimizer.step()
    after = net.eval()(batch)
    assert after.loss < 0.6 * before.loss
    assert after.metrics["depth_l1_m_reconstructed"] < 0.7 * before.metrics["depth_l1_m_reconstructed"]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["push", "pull"])
def test_a_training_step_compiles_without_a_graph_break(way: str) -> None:
    net, batch = model(mask_ratio=0.0, view_transform=way).train(), tiny_batch()
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.manual_seed(3)
    wanted = net(batch)
    torch.manual_seed(3)
    torch.testing.assert_close(compiled(batch).loss, wanted.loss)
