"""The dataset and its batches: shapes, masks, placeholders, and draws that depend on what they should alone."""

from __future__ import annotations

import pickle
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mim4d.data.clips import ClipBatch, ClipDataset, DataConfig, collate, open_datasets
from mim4d.data.frames import transform
from mim4d.data.nuscenes import clips_of_split, load_tables
from mim4d.data.rays import Rays
from mim4d.errors import UserError


@pytest.fixture(scope="module")
def config(room, truth):
    return DataConfig(
        root=str(room),
        version=truth.version,
        cameras=truth.cameras,
        offsets=(-0.5, 0.0, 0.25, 0.5),
        image_size=(24, 40),
        pad_multiple=16,
        rays_per_camera=50,
        workers=0,
    )


@pytest.fixture(scope="module")
def records(room, truth, config):
    tables = load_tables(room, truth.version)
    return clips_of_split(tables, "mini_train", config.offsets, cameras=config.cameras)


@pytest.fixture(scope="module")
def train(config, records):
    return ClipDataset(config, records, train=True, seed=3)


@pytest.fixture(scope="module")
def val(config, records):
    return ClipDataset(config, records, train=False)


def tensors(batch: ClipBatch) -> list[Tensor]:
    own = [getattr(batch, f.name) for f in fields(batch)]
    return [v for v in own if isinstance(v, Tensor)] + [getattr(batch.rays, f.name) for f in fields(batch.rays)]


def same(a: ClipBatch, b: ClipBatch) -> bool:
    return a.tokens == b.tokens and all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


def test_a_batch_has_the_promised_shapes_and_types(train):
    batch = collate([train[1], train[2]])
    b, t, n, k, r = 2, 4, 2, 2, 50
    shapes = {
        "images": (b, t, n, 3, 32, 48),
        "intrinsics": (b, t, n, 3, 3),
        "frame_from_cam": (b, t, n, 4, 4),
        "key_from_frame": (b, t, 4, 4),
        "offsets": (b, t),
        "valid": (b, t),
        "targets": (b, k),
        "target_valid": (b, k),
    }
    types = {"valid": torch.bool, "targets": torch.int64, "target_valid": torch.bool}
    for name, shape in shapes.items():
        assert getattr(batch, name).shape == shape, name
        assert getattr(batch, name).dtype == types.get(name, torch.float32), name
    for name, tail in {"origins": (3,), "directions": (3,), "rgb": (3,), "depth": (), "pixels": (2,)}.items():
        assert getattr(batch.rays, name).shape == (b, k, n, r, *tail), name
        assert getattr(batch.rays, name).dtype == torch.float32, name
    assert batch.rays.has_depth.dtype == torch.bool
    assert (batch.content, batch.key) == ((24, 40), 1)
    assert batch.tokens == [train.clips[1].token, train.clips[2].token]
    assert all(torch.isfinite(tensor.float()).all() for tensor in tensors(batch))


def test_images_are_rgb_between_0_and_1_with_zero_padding(train, truth):
    batch = train[1]
    for t, frame in enumerate(train.clips[1].frames):
        for n, camera in enumerate(frame.cameras):
            # The filter's weighted mean of a ramp is the ramp at the centre, away from the border: the mean of 2x2.
            ramp = truth.ramp(camera.timestamp_us).astype(float)
            halved = ramp.reshape(24, 2, 40, 2, 3).mean((1, 3)) / 255
            found = batch.images[0, t, n, :, :24, :40].permute(1, 2, 0).numpy()
            np.testing.assert_allclose(found[1:-1, 1:-1], halved[1:-1, 1:-1], atol=0.6 / 255)
    assert not batch.images[..., 24:, :].any()
    assert not batch.images[..., 40:].any()


def test_calibration_follows_the_resize(train, truth):
    expected = truth.intrinsics * [[0.5], [0.5], [1]]
    np.testing.assert_allclose(train[1].intrinsics[0, 2, 1].numpy(), expected, rtol=1e-7)


def test_matrices_and_offsets_are_those_of_the_records(train):
    batch, clip = train[1], train.clips[1]
    key = np.linalg.inv(clip.key_frame.global_from_frame)
    assert batch.valid.all()
    np.testing.assert_allclose(batch.offsets[0].numpy(), [-0.5, 0, 0.25, 0.5], atol=1e-7)
    for t, frame in enumerate(clip.frames):
        np.testing.assert_allclose(batch.key_from_frame[0, t].numpy(), key @ frame.global_from_frame, atol=1e-6)
        for n in range(2):
            np.testing.assert_allclose(batch.frame_from_cam[0, t, n].numpy(), frame.frame_from_cam(n), atol=1e-6)


def test_a_missing_frame_is_masked_and_finite(train):
    batch = train[0]
    assert batch.valid.tolist() == [[False, True, True, True]]
    assert not batch.images[0, 0].any()
    assert batch.images[0, 1].any()
    assert batch.offsets[0, 0] == -0.5
    assert torch.equal(batch.key_from_frame[0, 0], torch.eye(4))
    assert torch.equal(batch.intrinsics[0, 0], batch.intrinsics[0, 1])
    assert torch.equal(batch.frame_from_cam[0, 0], batch.frame_from_cam[0, 1])
    for epoch in range(20):
        assert train.load(0, epoch).targets[0, 1] in (2, 3)


def test_targets_are_the_key_frame_and_another_valid_one(train):
    drawn = {int(train.load(1, epoch).targets[0, 1]) for epoch in range(30)}
    assert drawn == {0, 2, 3}
    assert all(train.load(1, epoch).targets[0, 0] == 1 for epoch in range(3))
    several = ClipDataset(replace(train.config, targets=3), train.clips, train=True)
    for epoch in range(5):
        targets = several.load(1, epoch).targets[0].tolist()
        assert targets[0] == 1
        assert len(set(targets)) == 3
    # More targets than frames: each frame once.
    assert ClipDataset(replace(train.config, targets=9), train.clips, train=True)[1].targets.shape == (1, 4)


def test_a_clip_without_neighbours_has_one_valid_target(config, records):
    alone = [replace(clip, frames=(None, clip.key_frame, None, None)) for clip in records]
    batch = ClipDataset(config, alone, train=True)[0]
    assert batch.targets.tolist() == [[1, 1]]
    assert batch.target_valid.tolist() == [[True, False]]
    assert not batch.rays.has_depth[0, 1].any()
    assert not batch.rays.rgb[0, 1].any()
    assert not batch.rays.depth[0, 1].any()
    torch.testing.assert_close(batch.rays.directions[0, 1].norm(dim=-1), torch.ones(2, 50))


def test_single_frames_are_clips_too(config, records):
    single = [replace(clip, offsets=(0.0,), frames=(clip.key_frame,), key=0) for clip in records]
    batch = ClipDataset(replace(config, offsets=(0.0,)), single, train=True)[0]
    assert batch.images.shape[1] == 1
    assert batch.targets.tolist() == [[0]]
    assert batch.target_valid.all()


def test_rays_end_on_the_wall_in_the_target_frames_coordinates(train, truth):
    for epoch in range(4):
        batch, clip = train.load(1, epoch), train.clips[1]
        for k, target in enumerate(batch.targets[0].tolist()):
            rays = batch.rays.map(lambda tensor, k=k: tensor[0, k].reshape(-1, *tensor.shape[4:]))
            assert rays.has_depth.all()
            frame = clip.frames[target]
            origins = transform(frame.global_from_frame, rays.origins.double().numpy())
            directions = rays.directions.double().numpy() @ frame.global_from_frame[:3, :3].T
            wall = truth.wall_distance(origins, directions)
            # float32 of the file and of the rays; measured 4.5e-6.
            np.testing.assert_allclose(rays.depth.numpy(), wall, atol=5e-5)


def test_rays_start_at_their_pixels_and_see_their_colour(train):
    batch = train[1]
    image = batch.images[0, 1, 0]
    xy = batch.rays.pixels[0, 0, 0]
    inside = ((xy > 0.5) & (xy < torch.tensor([39.5, 23.5]))).all(-1)
    grid = (xy / torch.tensor([48.0, 32.0]) * 2 - 1)[None, None]
    seen = torch.nn.functional.grid_sample(image[None], grid, align_corners=False)[0, :, 0].T
    torch.testing.assert_close(batch.rays.rgb[0, 0, 0][inside], seen[inside], atol=1e-5, rtol=0)
    in_cam = batch.rays.directions[0, 0, 0] @ batch.frame_from_cam[0, 1, 0, :3, :3]
    projected = in_cam @ batch.intrinsics[0, 1, 0].T
    torch.testing.assert_close(projected[:, :2] / projected[:, 2:], xy, atol=1e-4, rtol=0)
    assert torch.equal(batch.rays.origins[0, 0, 0, 7], batch.frame_from_cam[0, 1, 0, :3, 3])


def test_draws_depend_on_seed_epoch_and_clip_alone(config, records, train):
    again = ClipDataset(config, records, train=True, seed=3)
    assert same(train.load(1, 5), again.load(1, 5))
    other_epoch, other_seed = train.load(1, 6), ClipDataset(config, records, train=True, seed=4).load(1, 5)
    for other in (other_epoch, other_seed):
        assert not torch.equal(train.load(1, 5).rays.pixels, other.rays.pixels)
        assert torch.equal(train.load(1, 5).images, other.images)


def test_cameras_draw_apart(train):
    """The two cameras see the same wall under the same angles, but their draws must not be copies of each other."""
    pixels = train[1].rays.pixels[0, 0].floor()
    assert not torch.equal(pixels[0], pixels[1])


@pytest.mark.parametrize("workers, start", [(0, None), (2, "fork"), (1, "spawn")])
def test_workers_change_nothing_and_follow_the_epoch(config, records, train, workers, start):
    dataset = ClipDataset(config, records, train=True, seed=3)
    loader = DataLoader(
        dataset,
        batch_size=2,
        collate_fn=collate,
        num_workers=workers,
        multiprocessing_context=start,
        persistent_workers=workers > 0,
    )
    for epoch in (0, 7):
        dataset.set_epoch(epoch)
        expected = [collate([train.load(i, epoch) for i in pair]) for pair in ((0, 1), (2, 3))]
        assert all(same(a, b) for a, b in zip(loader, expected, strict=True))


def test_validation_is_the_key_frame_and_never_changes(val, config, records):
    batch = val[1]
    assert batch.targets.tolist() == [[1]]
    assert batch.rays.depth.shape == (1, 1, 2, 50)
    assert batch.rays.has_depth.all()
    assert same(batch, val.load(1, 9))
    assert same(batch, ClipDataset(config, records, train=False, seed=8)[1])


def cells(rays: Rays, camera: int) -> set[tuple[int, int]]:
    return {(int(x), int(y)) for x, y in rays.pixels[0, 0, camera].tolist()}


def test_held_out_rays_are_never_trained_on(config, records):
    config = replace(config, holdout="rays", holdout_fraction=0.3, rays_per_camera=370)
    train = ClipDataset(config, records, train=True, seed=1)
    val = ClipDataset(config, records, train=False)
    held = val[1]
    assert held.rays.has_depth.all()
    for camera in range(2):
        hits = len(val.key_cameras(1)[camera][1])
        drawn_only = val.key_cameras(1, drawn_only=True)[camera][1]
        mine = cells(held.rays, camera)
        assert len(mine) == len(drawn_only) == round(0.3 * hits)
        for epoch in range(3):
            trained = train.load(1, epoch).rays
            assert int(trained.has_depth[0, 0, camera].sum()) == min(370, hits - round(0.3 * hits))
            assert len(cells(trained, camera)) == 370  # the rest filled up, without touching what is held out
            assert not cells(trained, camera) & mine


def test_a_frame_holds_the_same_rays_out_in_every_clip(config, records):
    """The first clip's key frame is the second clip's neighbour, and may be its target."""
    config = replace(config, holdout="rays", holdout_fraction=0.5, rays_per_camera=100)
    held = ClipDataset(config, records, train=False)[0].rays
    train = ClipDataset(config, records, train=True)
    seen = 0
    for epoch in range(12):
        batch = train.load(1, epoch)
        if batch.targets[0, 1] == 0:
            other = Rays.join(torch.stack, [batch.rays]).map(lambda tensor: tensor[0, :, 1:])
            assert not any(cells(other, camera) & cells(held, camera) for camera in range(2))
            seen += 1
    assert seen


def test_bounds_drop_far_returns(config, records):
    near = replace(config, lidar_bounds=(-20.0, -28.5, -3.0, 20.0, 28.5, 5.0))
    everything = ClipDataset(config, records, train=True).key_cameras(1)
    kept = ClipDataset(near, records, train=True).key_cameras(1)
    assert 0 < sum(len(h) for _, h in kept) + 1 < sum(len(h) for _, h in everything)


def test_key_cameras_show_all_returns_in_order(config, records):
    plain = ClipDataset(config, records, train=True).key_cameras(2)
    rays = ClipDataset(replace(config, holdout="rays"), records, train=False).key_cameras(2)
    for (view, hits), (_, joined) in zip(plain, rays, strict=True):
        assert view.image.shape == (24, 40, 3)
        np.testing.assert_array_equal(hits.pixel, joined.pixel)
        np.testing.assert_array_equal(hits.depth, joined.depth)


def test_dense_rays_cover_every_camera(val):
    rays = val.dense_rays(1, 4)
    assert rays.origins.shape == (2, 6, 10, 3)
    torch.testing.assert_close(rays.origins[1, 0, 0], val[1].frame_from_cam[0, 1, 1, :3, 3])


def test_without_lidar_all_rays_are_colour_alone(tmp_path, truth, config):
    root = truth.write(tmp_path / "room", lidar=False)
    train, val = open_datasets(replace(config, root=str(root)))
    for batch in (train[1], val[1]):
        assert not batch.rays.has_depth.any()
        assert (batch.rays.pixels[..., 1] >= np.ceil(0.4 * 24)).all()


def test_a_dataset_is_small_to_send(train):
    assert len(pickle.dumps(train)) < 20_000


def test_a_batch_moves_and_maps_all_its_tensors(train):
    batch = train[1].to("meta", non_blocking=True)
    assert all(tensor.device.type == "meta" for tensor in tensors(batch))
    assert batch.tokens == train[1].tokens


def test_a_mixture_does_not_collate(train, config, records):
    other = ClipDataset(replace(config, image_size=(20, 40)), records, train=True)
    with pytest.raises(ValueError, match="content differs"):
        collate([train[1], other[1]])


def test_open_datasets_takes_the_usual_splits(config, truth):
    train, val = open_datasets(config, seed=3)
    assert {clip.scene for clip in train.clips} == {"scene-0061"}
    assert {clip.scene for clip in val.clips} == {"scene-0103"}
    swapped = open_datasets(replace(config, train_split="mini_val", val_split="mini_train"))
    assert [{clip.scene for clip in dataset.clips} for dataset in swapped] == [{"scene-0103"}, {"scene-0061"}]
    rays = open_datasets(replace(config, holdout="rays"))
    assert [clip.token for clip in rays[0].clips] == [clip.token for clip in rays[1].clips]


def test_a_missing_validation_scene_points_to_held_out_rays(tmp_path, truth, config):
    root = truth.write(tmp_path / "room", scenes=("scene-0061",))
    with pytest.raises(UserError, match=r"split 'mini_val' is empty.*--data\.holdout rays"):
        open_datasets(replace(config, root=str(root)))
    assert len(open_datasets(replace(config, root=str(root), holdout="rays"))[1]) == 4


@pytest.mark.parametrize(
    "change, message",
    [
        ({"offsets": (-0.5, 0.5)}, r"--data\.offsets \(-0\.5, 0\.5\) must name 0\.0"),
        ({"offsets": (0.0, 0.5, 0.5)}, "no time twice"),
        ({"lidar_bounds": (-9.0, -9.0, 5.0, 9.0, 9.0, -3.0)}, r"--data\.lidar-bounds .* is an empty box"),
        ({"tolerance": -1.0}, r"--data\.tolerance -1\.0 must not be negative"),
        ({"cameras": ()}, r"--data\.cameras \(\)"),
        ({"image_size": (0, 10)}, r"--data\.image-size \(0, 10\)"),
        ({"pad_multiple": 0}, r"--data\.pad-multiple 0"),
        ({"targets": 0}, r"--data\.targets 0"),
        ({"sky": 1.0}, r"--data\.sky 1\.0"),
        ({"holdout": "raise"}, r"--data\.holdout 'raise' must be 'scenes' or 'rays'"),
        ({"holdout_fraction": 0.0}, r"--data\.holdout-fraction 0\.0"),
        ({"workers": -1}, r"--data\.workers -1"),
        ({"rays_per_camera": 0}, r"--data\.rays-per-camera 0 must be at least 1"),
        ({"rays_per_camera": 561}, r"--data\.rays-per-camera 561 is more than the 560 pixels"),
        ({"rays_per_camera": 505, "holdout": "rays"}, "more than the 504 pixels"),
        ({"patch": 0}, r"--data\.patch 0 must be at least 1"),
        ({"patch": 25, "rays_per_camera": 625}, r"--data\.patch 25 must be at least 1 and fit into the image"),
        ({"patch": 3}, r"--data\.rays-per-camera 50 must be a multiple of the 3 x 3 rays of a patch"),
        ({"patch": 3, "rays_per_camera": 45, "holdout": "rays"}, r"--data\.patch 3 would show training"),
    ],
)
def test_an_option_that_cannot_work_is_named(config, change, message):
    with pytest.raises(UserError, match=message):
        open_datasets(replace(config, **change))
    assert "\n" not in message


def test_a_file_that_breaks_later_is_named_through_a_worker(broken_room, truth, config):
    train, _ = open_datasets(replace(config, root=str(broken_room)))
    path = train.clips[0].key_frame.lidar.path
    with open(path, "ab") as file:
        file.write(b"?")
    with pytest.raises(UserError, match=f"truncated LiDAR file: {path}"):
        train[0]
    with pytest.raises(UserError, match=f"truncated LiDAR file: {path}"):
        next(iter(DataLoader(train, collate_fn=collate, num_workers=1)))


def test_training_draws_patches_and_validation_single_rays(config, records):
    config = replace(config, patch=3, rays_per_camera=45)
    batches = [ClipDataset(config, records, train=train)[1] for train in (True, False)]
    assert [batch.patch for batch in batches] == [3, 1]
    step = [batch.rays.pixels.floor()[..., 1, :] - batch.rays.pixels.floor()[..., 0, :] for batch in batches]
    assert (step[0] == torch.tensor([1.0, 0.0])).all()  # along the first row of the patch
    assert not (step[1] == torch.tensor([1.0, 0.0])).all()
    assert collate([batches[0], batches[0]]).patch == 3
    with pytest.raises(ValueError, match="patch differs"):
        collate([batches[0], replace(batches[0], patch=1)])
