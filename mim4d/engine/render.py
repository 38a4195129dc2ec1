"""Pictures of what a model has learned: dense renderings of one held-out clip, as arrays and as PNG files.

``RUN/renders/before.npz`` is drawn at step 0 and ``after.npz`` at the end, by the training itself; ``mim4d render RUN``
draws ``after.npz`` of a finished run anew, beside one PNG per camera, and refreshes the report. Pictures of any other
step or clip get names of their own and leave the report alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mim4d.data import ClipDataset, open_datasets
from mim4d.data.nuscenes import boxes_in_frame, load_tables
from mim4d.engine import checkpoint, folder
from mim4d.engine.batches import mix
from mim4d.engine.config import TrainConfig
from mim4d.engine.environment import check_backend
from mim4d.engine.evaluate import evaluating
from mim4d.engine.progress import Display
from mim4d.errors import UserError
from mim4d.models import MIM4D, build_model

SLICE_HEIGHT = 0.5  # metres above the ego frame's ground: where cars are

Arrays = dict[str, np.ndarray]


def picture_clip(clips: ClipDataset) -> int:
    """The held-out clip that is drawn unless another one is asked for: the middle one, which has neighbours in time."""
    return len(clips) // 2


def draw(model: MIM4D, clips: ClipDataset, index: int, *, stride: int, device: torch.device, seed: int = 0) -> Arrays:
    """Render one clip's key frame densely, the way evaluation does.

    Args:
        model: left in the mode it came in.
        clips: held-out clips.
        index: which of them.
        stride: every n-th pixel in both directions becomes a ray.
        device: where the model is.
        seed: of the mask shown in ``masked_image``.

    Returns:
        The arrays of a ``renders/*.npz`` for N cameras, pictures H x W, renderings h x w = H // stride x W // stride
        and a BEV grid Y x X: cameras (N,), image and masked_image (N,H,W,3) uint8, stride, rgb_direct (N,h,w,3) uint8,
        depth_direct (N,h,w) metres, opacity_direct (N,h,w), the same with ``_reconstructed`` where there is one,
        lidar (P,4) [camera, u, v, ray depth in metres] of the returns that ``clips`` draws rays from (with rays held
        out: those alone, so that an error against them is a held-out one), bev_direct (Y,X) (length of the feature
        vector, largest over the height), sdf_slice (Y,X) metres, motion (2,Y,X) m/s, bounds (6,), token. The boxes are
        :func:`boxes`'.
    """
    batch = clips.load(index, 0)
    height, width = batch.content
    if not 1 <= stride <= min(height, width):
        raise UserError(f"the picture stride must be between 1 and {min(height, width)}, not {stride}")
    dense = clips.dense_rays(index, stride)  # (N, h, w)
    n, h, w = dense.depth.shape
    rays = dense.map(lambda t: t.reshape(1, 1, n, h * w, *t.shape[3:]))
    frame = dataclasses.replace(batch, rays=rays).to(device)

    # The volumes themselves are inside the model's one forward pass; listen instead of computing them a second way.
    heard: dict[str, Tensor] = {}
    hooks = [model.voxel_encoder.register_forward_hook(lambda module, given, out: heard.update(direct=out))]
    if model.voxel_decoder is not None:
        hooks.append(
            model.voxel_decoder.register_forward_hook(lambda m, given, out: heard.update(reconstructed=out[0]))
        )
    try:
        with evaluating(model):
            output = model(frame)
            mask = model.draw_mask(batch.to(device), torch.Generator().manual_seed(mix(seed, index, 3)))
            direct = heard["direct"][:, batch.key].float()  # (1, C, Z, Y, X)
            slice_ = sdf_slice(model, direct)
    finally:
        for hook in hooks:
            hook.remove()

    image = batch.images[0, batch.key, :, :, :height, :width].permute(0, 2, 3, 1)  # (N, H, W, 3)
    visible = mask[0, batch.key, :, :height, :width, None].cpu()  # (N, H, W, 1)
    cameras = clips.key_cameras(index, drawn_only=True)
    arrays: Arrays = {
        "cameras": np.array(clips.config.cameras),
        "image": _bytes(image),
        "masked_image": _bytes(image * visible),
        "stride": np.array(stride),
        "lidar": np.concatenate(
            [np.column_stack([np.full(len(hits), i), hits.uv, hits.depth]) for i, (_, hits) in enumerate(cameras)]
        ).astype(np.float32),
        "sdf_slice": slice_,
        "bounds": np.array(model.config.bounds, dtype=np.float32),
        "token": np.array(batch.tokens[0]),
    }
    for path, render in (("direct", output.direct), ("reconstructed", output.reconstructed)):
        if path in heard:
            volume = direct if path == "direct" else heard[path][:, 0].float()  # (1, C, Z, Y, X)
            arrays[f"bev_{path}"] = volume[0].norm(dim=0).amax(dim=0).cpu().numpy()  # (Y, X)
        if render is not None:
            arrays[f"rgb_{path}"] = _bytes(render.rgb.reshape(n, h, w, 3))
            arrays[f"depth_{path}"] = render.depth.reshape(n, h, w).float().cpu().numpy()
            arrays[f"opacity_{path}"] = render.opacity.reshape(n, h, w).float().cpu().numpy()
    if output.motion is not None and bool(output.reconstructed_valid.any()):
        arrays["motion"] = output.motion[0, 0].float().cpu().numpy()
    return arrays


def sdf_slice(model: MIM4D, volume: Tensor) -> np.ndarray:
    """Signed distance (Y, X) in metres at :data:`SLICE_HEIGHT` over the cells' centres; volume (1, C, Z, Y, X)."""
    points = model.grid.centres(device=volume.device, dtype=torch.float32)[0].clone()  # (Y, X, 3)
    points[..., 2] = SLICE_HEIGHT
    return model.renderer.sdf(volume, points[None])[0].cpu().numpy()


def boxes(config: Any, clips: ClipDataset, index: int) -> np.ndarray:
    """Annotated boxes of a clip's key frame, its coordinates: (M, 9) x, y, z, w, l, h (m), yaw (rad), vx, vy (m/s)."""
    return boxes_in_frame(load_tables(config.root, config.version), clips.clips[index]).astype(np.float32)


def save_arrays(path: Path, arrays: Arrays) -> None:
    """Write an ``.npz``, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    temporary.replace(path)


def save_pictures(folder: Path, arrays: Arrays) -> list[Path]:
    """One PNG per camera: photograph, rendered colour and rendered depth side by side (and the rebuilt ones below)."""
    from PIL import Image

    from mim4d.viz.images import depth_to_rgb

    folder.mkdir(parents=True, exist_ok=True)
    _, height, width = arrays["image"].shape[:3]

    def fitted(picture: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST))

    written = []
    for camera, name in enumerate(arrays["cameras"]):
        rows = []
        for path, first in (("direct", "image"), ("reconstructed", "masked_image")):
            if f"rgb_{path}" in arrays:
                colour, depth = arrays[f"rgb_{path}"][camera], depth_to_rgb(arrays[f"depth_{path}"][camera])
                rows.append(np.concatenate([arrays[first][camera], fitted(colour), fitted(depth)], axis=1))
        target = folder / f"{name}.png"
        Image.fromarray(np.concatenate(rows, axis=0)).save(target)
        written.append(target)
    return written


def render_run(run: Path, *, step: int = -1, stride: int = 0, clip: int = -1) -> list[Path]:
    """What ``mim4d render RUN`` does; returns the pictures.

    The report shows a finished run at its last step: only then, and of the report's own clip, are ``after.npz`` and
    the report written anew. All else goes to names like ``renders/step-000002.npz`` and ``renders/clip-0003.npz``.

    Args:
        run: folder of a run with a checkpoint.
        step: of the checkpoint; -1: the newest.
        stride: of the pixels; 0: the run's.
        clip: held-out clip; -1: the one that the report shows.

    Raises:
        UserError: no such run, checkpoint or clip, or its data are gone.
    """
    from mim4d.viz.report import write_report

    config = folder.existing_run(run)
    steps = checkpoint.steps_saved(run)
    if not steps:
        raise UserError(f"{run} has no checkpoint yet; continue it with: mim4d pretrain --out {run}")
    if step >= 0 and step not in steps:
        raise UserError(f"{run} has no checkpoint of step {step} (there are: {', '.join(map(str, steps))})")
    train: TrainConfig = config.train
    device = torch.device("cuda" if torch.cuda.is_available() and train.device == "auto" else "cpu")
    check_backend(device)
    if train.threads:
        torch.set_num_threads(train.threads)
    _, clips = open_datasets(config.data, seed=train.seed)
    shown = picture_clip(clips)
    index = shown if clip < 0 else clip
    if index >= len(clips):
        raise UserError(f"there is no held-out clip {clip}: the last one is {len(clips) - 1}")
    model_config = dataclasses.replace(config.model, pretrained=False, backbone_checkpoint="")
    model = build_model(model_config).to(device)
    drawn = step if step >= 0 else steps[-1]
    path = checkpoint.folder(run, drawn)
    checkpoint.load(path, model)
    display = Display()
    display.line(f"rendering clip {index} with {path}")
    half = torch.autocast(device.type, torch.bfloat16) if train.precision == "bf16" else contextlib.nullcontext()
    with half:
        arrays = draw(model, clips, index, stride=stride or train.picture_stride, device=device, seed=train.seed)
    arrays["boxes"] = boxes(config.data, clips, index)
    renders = run / folder.RENDERS
    summary = folder.read_summary(run)
    final = bool(summary.get("finished")) and drawn == summary.get("steps")
    parts = ([] if final else [f"step-{drawn:06d}"]) + ([] if index == shown else [f"clip-{index:04d}"])
    name = "-".join(parts) or "after"
    save_arrays(renders / f"{name}.npz", arrays)
    pictures = save_pictures(renders / name, arrays)
    kept = ""
    if not final:
        end = f"the run's last step is {summary['steps']}" if summary.get("finished") else "the run is not finished"
        kept = f"; after.npz and the report stay as they are: {end}"
    display.line(f"wrote {renders / name}.npz and {len(pictures)} pictures in {renders / name}{kept}")
    if name == "after":
        display.line(f"wrote {write_report(run)}")
    return pictures


def _bytes(picture: Tensor) -> np.ndarray:
    """uint8 of colours in [0, 1]."""
    return (picture.float().clamp(0.0, 1.0) * 255.0).round().byte().cpu().numpy()
