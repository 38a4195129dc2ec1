"""Fit a signed distance field to pictures (colour, distance) of a ball and a block, and look at it from a new place.
A minute on one core; needs mim4d[train]. fit_sdf.png: truth above, learned below; colour, distance, normals. Metres."""

import torch
from PIL import Image
from rich.progress import track
from torch.nn.functional import normalize

from mim4d.nn import SDFField, SDFRenderer, eikonal_loss
from mim4d.viz.images import depth_to_rgb

PAINT, UP = torch.tensor([[0.85, 0.3, 0.2], [0.25, 0.45, 0.8], [0.75] * 3, [0.45] * 3, [0.8, 0.9, 1]]), torch.eye(3)[2]


def scene(p):  # (R, 3) -> signed distance (R,), colour (R, 3)
    q = (p - torch.tensor([-2.5, 1.5, 1.5])).abs() - torch.tensor([1.8, 2.4, 1.5])
    block = q.clamp(min=0).norm(dim=-1) + q.amax(-1).clamp(max=0)
    sdf, which = torch.stack([(p - torch.tensor([2.5, -1.5, 2.0])).norm(dim=-1) - 2, block, p[..., 2]], -1).min(-1)
    return sdf, PAINT[torch.where(which == 2, 2 + (p[..., :2] / 4).floor().sum(-1).long() % 2, which)]


def look(angle, size):  # R = size^2 rays, traced: origins, directions, colours, normals (R, 3), distances, seen (R,)
    origin = 13 * torch.tensor([angle, angle - torch.pi / 2, torch.pi / 2]).cos() + 6 * UP
    right, ahead = normalize(torch.linalg.cross(UP, origin), dim=0), normalize(0.8 * UP - origin, dim=0)
    v, u = (x.reshape(-1, 1) for x in torch.meshgrid(*[torch.linspace(-0.5, 0.5, size)] * 2, indexing="ij"))
    rays, t = normalize(ahead + u * right + v * torch.linalg.cross(ahead, right), dim=-1), torch.zeros(size**2)
    for _ in range(96):
        t = (t + scene(origin + t[:, None] * rays)[0]).clamp(max=60)
    p = (origin + t[:, None] * rays).requires_grad_()
    (normal,) = torch.autograd.grad(scene(p)[0].sum(), p)
    seen, light = (p[:, :2].abs() < 8).all(-1), 0.45 + 0.55 * (normal @ torch.tensor([0.48, -0.36, 0.8])).clamp(min=0)
    rgb = torch.where(seen[:, None], scene(p)[1] * light[:, None], PAINT[4])
    return origin.expand_as(rays), rays, rgb, normal, t, seen


def main(steps=500, cameras=range(16), size=96, rays=512, side=256, out="fit_sdf.png"):
    torch.manual_seed(0)
    volume = torch.zeros(1, 16, 16, 32, 32, requires_grad=True)  # (1, C, Z, Y, X), half a metre a cell
    renderer = SDFRenderer(SDFField(16), (-8, -8, -1, 8, 8, 7), background=PAINT[4].tolist(), n_uniform=48)
    optimizer = torch.optim.Adam([volume, *renderer.parameters()])
    origins, directions, rgb, _, depth, seen = map(torch.cat, zip(*(look(0.4 * a, size) for a in cameras), strict=True))
    for step in track(range(steps), "fitting"):
        optimizer.param_groups[0]["lr"] = 1e-2 * 0.05 ** (step / steps)
        i = torch.randint(len(rgb), (rays,))
        found = renderer(volume, origins[None, i], directions[None, i])
        gap = (found.depth[0] - depth[i]).abs()[seen[i]].mean()
        optimizer.zero_grad()
        ((found.rgb[0] - rgb[i]).abs().mean() + 0.1 * gap + 0.1 * eikonal_loss(found.gradient, found.hit)).backward()
        optimizer.step()
    origins, directions, *truth = look(0.6, side)
    v, rows = renderer.view(volume, origins[None], directions[None], memory=2**28), []
    for rgb, normal, depth, seen in (truth, (v.rgb[0], v.normal[0], v.depth[0], v.opacity[0] > 0.5)):
        far = torch.from_numpy(depth_to_rgb(depth.numpy(), seen.numpy(), (8.0, 26.0)) / 255)
        row = rgb, far, torch.where(seen[:, None], 0.5 + normal / 2, 0.5)
        rows.append(torch.cat([x.view(side, side, 3) for x in row], 1))
    Image.fromarray((torch.cat(rows).clamp(0, 1) * 255).byte().numpy()).save(out)


if __name__ == "__main__":
    main()
