"""Rendering of a feature volume along rays, metres in and metres out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim4d import ops

from .sdf_field import SDFField


@dataclass(frozen=True)
class RenderOutput:
    """What the rays saw. Leading sizes are (B, R), or whatever :meth:`reshape` made of them; S sections per ray."""

    rgb: Tensor  # (B, R, 3) in [0, 1], background blended in
    depth: Tensor  # (B, R) ray length in metres; 0 where the ray misses the box
    opacity: Tensor  # (B, R) sum of the weights
    sdf: Tensor  # (B, R, S) metres, at the start of each section
    gradient: Tensor  # (B, R, S, 3) of the signed distance with respect to position (no unit: metres per metre)
    weights: Tensor  # (B, R, S)
    edges: Tensor  # (B, R, S + 1) metres along the ray
    hit: Tensor  # (B, R) bool, the ray crosses the box beyond the near distance

    def map(self, function: Callable[[Tensor], Tensor]) -> RenderOutput:
        """The same record with ``function`` applied to every tensor."""
        return RenderOutput(*(function(getattr(self, f.name)) for f in fields(self)))

    def reshape(self, *leading: int) -> RenderOutput:
        """Give every tensor other leading sizes in the place of (B, R)."""
        return self.map(lambda t: t.reshape(*leading, *t.shape[2:]))


@dataclass(frozen=True)
class View:
    """Pictures. Leading sizes are those of the rays, (B, H, W) for instance."""

    rgb: Tensor  # (..., 3) in [0, 1], background blended in
    depth: Tensor  # (...) ray length in metres; 0 where the ray misses the box
    opacity: Tensor  # (...) sum of the weights
    normal: Tensor  # (..., 3) unit, in the coordinates of the box, towards the outside; 0 where the ray misses
    hit: Tensor  # (...) bool


def _concatenate(parts: list[RenderOutput]) -> RenderOutput:
    if len(parts) == 1:
        return parts[0]
    return RenderOutput(*(torch.cat([getattr(p, f.name) for p in parts], dim=1) for f in fields(RenderOutput)))


class SDFRenderer(nn.Module):
    """NeuS-style volume rendering of an SDF that is decoded from a feature volume (METHOD section 6).

    Works inside in scaled coordinates (``scale`` = 1 / the largest coordinate of the box) and in fp32, also under
    autocast: a bfloat16 distance is good to some 20 cm at 50 m.

    A ray *hits* where it crosses the box beyond ``near``. One that does not (or whose direction is not a number) is
    marched over a harmless stretch at the centre of the box and then multiplied away: it shows background, no depth, no
    opacity, and gives no gradient.

    Args:
        field: the decoders.
        bounds: (xmin, ymin, zmin, xmax, ymax, zmax), metres, the box that volumes cover.
        n_uniform, n_importance: sections by equal division and by a second look where the first saw a surface.
        mode, padding_mode: how the volume is read, see :func:`mim4d.ops.voxel_sample`.
        near: metres; nothing nearer is seen.
        background: colour behind everything, in [0, 1].
        chunk: rays per pass. Bounds memory, changes no value. :meth:`view` has a limit in bytes instead.
        sharpness: fixed s of the second look.

    Raises:
        ValueError: the box is empty, or a count or distance is not positive.
    """

    background: Tensor

    def __init__(
        self,
        field: SDFField,
        bounds: tuple[float, float, float, float, float, float],
        *,
        n_uniform: int = 72,
        n_importance: int = 24,
        mode: str = "trilinear",
        padding_mode: str = "zeros",
        near: float = 1.0,
        background: tuple[float, float, float] = (0.0, 0.0, 0.0),
        chunk: int = 8192,
        sharpness: float = 64.0,
    ) -> None:
        super().__init__()
        if any(low >= high for low, high in zip(bounds[:3], bounds[3:], strict=True)):
            raise ValueError(f"SDFRenderer: bounds must have min < max on each axis, got {bounds}")
        if n_uniform < 1 or n_importance < 0 or chunk < 1 or near <= 0:
            raise ValueError(
                "SDFRenderer: wanted n_uniform >= 1, n_importance >= 0, chunk >= 1 and near > 0, "
                f"got {n_uniform}, {n_importance}, {chunk}, {near}"
            )
        self.field = field
        self.n_uniform, self.n_importance, self.chunk = n_uniform, n_importance, chunk
        self.mode, self.padding_mode = mode, padding_mode
        self.near, self.sharpness = float(near), float(sharpness)
        self.scale = 1.0 / max(abs(b) for b in bounds)
        self.bounds = bounds
        self.aabb = tuple(b * self.scale for b in bounds)
        self.register_buffer("background", torch.tensor(background, dtype=torch.float32), persistent=False)

    def forward(
        self,
        volume: Tensor,
        origins: Tensor,
        directions: Tensor,
        edges: Tensor | None = None,
        jitter: Tensor | None = None,
    ) -> RenderOutput:
        """
        Args:
            volume: (B, C, Z, Y, X).
            origins: (B, R, 3) metres, the coordinates of the box.
            directions: (B, R, 3), unit length.
            edges: (B, R, S + 1) metres along the rays, ascending; None: sampled.
            jitter: (B, R, 2) in [0, 1), moves the sampled edges; None: drawn in training mode, none in evaluation.

        Returns:
            A :class:`RenderOutput` with leading sizes (B, R).
        """
        if edges is None and jitter is None and self.training:
            jitter = torch.rand(*origins.shape[:2], 2, device=origins.device)
        with torch.autocast(origins.device.type, enabled=False):
            dtype = torch.float64 if volume.dtype == torch.float64 else torch.float32
            volume = volume.to(dtype)
            parts = []
            # max(.., 1): no rays at all still make one, empty, pass, so that every output has its shape.
            for start in range(0, max(origins.shape[1], 1), self.chunk):
                rays = slice(start, start + self.chunk)
                parts.append(
                    self._march(
                        volume,
                        origins[:, rays].to(dtype),
                        directions[:, rays].to(dtype),
                        None if edges is None else edges[:, rays].to(dtype),
                        None if jitter is None else jitter[:, rays].to(dtype),
                    )
                )
            return _concatenate(parts)

    @torch.no_grad()
    def view(self, volume: Tensor, origins: Tensor, directions: Tensor, *, memory: int = 2**30) -> View:
        """Render whole images: as in evaluation, without gradients, in passes of as many rays as memory allows.

        Args:
            volume: (B, C, Z, Y, X).
            origins: (B, ..., 3) metres, or what broadcasts to the directions, such as (B, 1, 1, 3) for a camera.
            directions: (B, ..., 3), unit length.
            memory: bytes, the most that is held at a time beside the arguments and the result. The passes follow from
                what the references need; the kernels need far less of it.

        Returns:
            A :class:`View` with the directions' leading sizes.

        Raises:
            ValueError: rays of another number of scenes than the volume's, or not even a single ray fits.
        """
        if directions.dim() < 2 or directions.shape[0] != volume.shape[0] or directions.shape[-1] != 3:
            raise ValueError(
                f"SDFRenderer.view: directions has shape {tuple(directions.shape)}, wanted ({volume.shape[0]}, ..., 3)"
            )
        dtype = torch.float64 if volume.dtype == torch.float64 else torch.float32
        size = torch.finfo(dtype).bits // 8
        batch, leading = volume.shape[0], directions.shape[:-1]
        rays = directions.reshape(batch, -1, 3)  # (B, R, 3)
        starts = origins.expand(directions.shape).reshape(batch, -1, 3)
        per_ray = batch * (self.n_uniform + self.n_importance) * self._bytes_per_sample(volume.shape[1], size)
        # the volume once more in float32, by rows, and with a row of zeros; origins that were spread out
        fixed = 3 * volume.numel() * size + starts.numel() * starts.element_size()
        chunk = int((memory - fixed) // per_ray)
        if chunk < 1:
            raise ValueError(
                f"SDFRenderer.view: memory is {memory} bytes, wanted at least {fixed + per_ray}: {fixed} for copies of "
                f"the volume and the origins, {per_ray} per ray"
            )
        count = rays.shape[1]
        new = lambda *tail, kind=dtype: torch.empty(batch, count, *tail, dtype=kind, device=volume.device)
        found = View(rgb=new(3), depth=new(), opacity=new(), normal=new(3), hit=new(kind=torch.bool))
        with torch.autocast(volume.device.type, enabled=False):
            volume = volume.to(dtype)
            for first in range(0, count, chunk):
                part = slice(first, first + chunk)
                out = self._march(volume, starts[:, part].to(dtype), rays[:, part].to(dtype), None, None)
                found.rgb[:, part], found.depth[:, part], found.opacity[:, part] = out.rgb, out.depth, out.opacity
                found.normal[:, part] = F.normalize(torch.einsum("brs,brsi->bri", out.weights, out.gradient), dim=-1)
                found.hit[:, part] = out.hit
                del out  # before the next pass, not after it
        return View(*((t := getattr(found, f.name)).reshape(*leading, *t.shape[2:]) for f in fields(View)))

    def _bytes_per_sample(self, channels: int, size: int) -> int:
        """Memory of one sample without gradients, from above: taps and their weights, features, layers' values."""
        hidden, layers = self.field.hidden, self.field.sdf_decoder.layers
        taps = {"bicubic": 32, "tricubic": 64}.get(self.mode, 8)
        return size * (10 * taps + 4 * channels + (layers + 10) * hidden)

    def sdf(self, volume: Tensor, points: Tensor) -> Tensor:
        """The signed distance at points: volume (B, C, Z, Y, X), points (B, ..., 3) metres -> (B, ...) metres."""
        with torch.autocast(points.device.type, enabled=False):
            dtype = torch.float64 if volume.dtype == torch.float64 else torch.float32
            scaled = points.to(dtype) * self.scale
            features = ops.voxel_sample(
                volume.to(dtype), self._normalise(scaled), mode=self.mode, padding_mode=self.padding_mode
            )
            return self.field(scaled, features)[0] / self.scale

    def extents(self, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where rays are inside the box, in metres: near (B, R), far (B, R) and hit (B, R) = near < far."""
        near, far, hit = self._slab(origins * self.scale, directions)
        return near / self.scale, far / self.scale, hit

    def _normalise(self, scaled: Tensor) -> Tensor:
        """Scaled coordinates (..., 3) to grid coordinates in [-1, 1]."""
        axes = zip(scaled.unbind(-1), self.aabb[:3], self.aabb[3:], strict=True)
        return torch.stack([(a - l) * (2.0 / (h - l)) - 1.0 for a, l, h in axes], dim=-1)

    def _slab(self, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The slab test in scaled units. A component of 0 is replaced by a tiny one of the same sign: no 0/0."""
        tiny = 1e-8
        safe = torch.where(
            directions.abs() < tiny, torch.copysign(torch.full_like(directions, tiny), directions), directions
        )
        near = torch.full_like(origins[..., 0], self.near * self.scale)  # (B, R)
        far = torch.full_like(near, torch.inf)
        for axis in range(3):
            inverse = 1.0 / safe[..., axis]
            low = (self.aabb[axis] - origins[..., axis]) * inverse
            high = (self.aabb[axis + 3] - origins[..., axis]) * inverse
            near = torch.maximum(near, torch.minimum(low, high))
            far = torch.minimum(far, torch.maximum(low, high))
        # Not a ray: a direction of no length, or anything that is not finite (a padded or broken target).
        is_ray = (directions.square().sum(dim=-1) > 0.25) & torch.isfinite(origins).all(dim=-1) & torch.isfinite(far)
        return near, far, (near < far) & is_ray

    def _march(
        self, volume: Tensor, origins: Tensor, directions: Tensor, edges: Tensor | None, jitter: Tensor | None
    ) -> RenderOutput:
        """One chunk: (B, R) rays in metres, dtype of the volume."""
        origins = origins * self.scale
        near, far, hit = self._slab(origins, directions)
        # Rays that miss get a stretch inside the box: valid edges, finite values, finite gradients.
        lower, upper = self.aabb[:3], self.aabb[3:]
        start, forward = torch.zeros_like(origins), torch.zeros_like(directions)
        for axis in range(3):
            start[..., axis] = 0.5 * (lower[axis] + upper[axis])
        forward[..., 0] = 1.0
        origins = torch.where(hit[..., None], origins, start)
        directions = torch.where(hit[..., None], directions, forward)
        near = torch.where(hit, near, 0.0)
        far = torch.where(hit, far, 0.5 * (upper[0] - lower[0]))

        sdf_weights = [w.to(volume.dtype) for w in self.field.sdf_weights()]
        rgb_weights = [w.to(volume.dtype) for w in self.field.rgb_weights()]
        if edges is None:
            edges = ops.sdf_sample(
                volume,
                origins,
                directions,
                near,
                far,
                sdf_weights,
                aabb=self.aabb,
                jitter=jitter,
                n_uniform=self.n_uniform,
                n_importance=self.n_importance,
                sharpness=self.sharpness,
                mode=self.mode,
                padding_mode=self.padding_mode,
                align_corners=False,
            )
        else:
            edges = edges * self.scale
            span = torch.linspace(0.0, 1.0, edges.shape[-1], device=edges.device, dtype=edges.dtype)
            edges = torch.where(hit[..., None], edges, near[..., None] + (far - near)[..., None] * span)
        rgb, depth, opacity, sdf, gradient, weights = ops.sdf_march(
            volume,
            origins,
            directions,
            edges,
            sdf_weights,
            rgb_weights,
            self.field.inv_s().to(volume.dtype),
            aabb=self.aabb,
            mode=self.mode,
            padding_mode=self.padding_mode,
            align_corners=False,
        )
        mask = hit.to(volume.dtype)  # (B, R)
        opacity = opacity * mask
        rgb = rgb * mask[..., None] + (1.0 - opacity)[..., None] * self.background.to(volume.dtype)
        depth = torch.minimum(torch.maximum(depth, near), far) * mask
        return RenderOutput(
            rgb=rgb,
            depth=depth / self.scale,
            opacity=opacity,
            sdf=sdf / self.scale,
            gradient=gradient,
            weights=weights * mask[..., None],
            edges=edges / self.scale,
            hit=hit,
        )
