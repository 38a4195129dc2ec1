"""Mask-aware timm backbones: hidden pixels reach nothing, and without a mask they are timm's own."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from mim4d.errors import UserError
from mim4d.models import weights
from mim4d.models.backbone import MaskedConvNeXt, create_backbone, masked_batch_norm
from mim4d.models.image_encoder import ImageEncoder
from mim4d.models.masking import Visibility, block_mask, ray_mask

FAMILIES = ["convnext_atto", "convnextv2_atto", "resnet18", "resnet26d"]


def blocks(size: tuple[int, int] = (64, 96)) -> torch.Tensor:
    return block_mask((2,), size, ratio=0.3, generator=torch.Generator().manual_seed(3))[:, None]  # (2, 1, H, W)


def seeded_backbone(name: str) -> nn.Module:
    torch.manual_seed(0)
    backbone = create_backbone(name)
    for parameter in backbone.parameters():  # biases, shifts and layer scales start at 0 or 1e-6: give leaks a chance
        if parameter.dim() <= 1:
            nn.init.normal_(parameter, mean=0.3)
    return backbone


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_changing_hidden_pixels_changes_nothing_anywhere(name: str, training: bool) -> None:
    backbone = seeded_backbone(name).train(training)
    start = {k: v.clone() for k, v in backbone.state_dict().items()}
    visible = blocks()
    images = torch.randn(2, 3, 64, 96)
    changed = torch.where(visible, images, torch.randn(2, 3, 64, 96) * 50)
    assert not torch.equal(images, changed)

    seen: list[list[torch.Tensor]] = []
    statistics = []
    for x in (images, changed):
        backbone.load_state_dict(start)
        outputs: list[torch.Tensor] = []
        hooks = [
            module.register_forward_hook(lambda _m, _i, out, outputs=outputs: outputs.append(out.detach().clone()))
            for module in backbone.modules()
            if isinstance(module, (nn.Conv2d, nn.LayerNorm))
        ]
        outputs += backbone(x, Visibility(visible))
        seen.append(outputs)
        statistics.append([b.clone() for b in backbone.buffers()])
        for hook in hooks:
            hook.remove()
    assert len(seen[0]) >= 20
    for a, b in zip(*seen, strict=True):  # every convolution and norm on the way, and the four results
        assert torch.equal(a, b)
    for a, b in zip(*statistics, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", FAMILIES)
def test_hidden_positions_are_zero_in_every_stage_and_visible_ones_are_not(name: str) -> None:
    backbone = seeded_backbone(name).eval()
    visible = blocks()
    for stride, features in zip(
        backbone.strides, backbone(torch.randn(2, 3, 64, 96), Visibility(visible)), strict=True
    ):
        here = nn.functional.max_pool2d(visible.float(), stride)
        assert here.shape[-2:] == features.shape[-2:]
        assert (features * (1 - here) == 0).all()
        assert (features.abs().amax(1, keepdim=True) > 0).float().equal(here)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_layer_leaves_at_hidden_positions_reaches_no_stage(name: str, training: bool) -> None:
    """Noise is put at the hidden positions behind every convolution and norm: the stages must not notice."""
    backbone = seeded_backbone(name).train(training)
    visible = blocks()
    mask = Visibility(visible)
    disturbed = []

    def disturb(module: nn.Module, _inputs: object, out: torch.Tensor) -> torch.Tensor:
        seen = mask.at((out.shape[-2], out.shape[-1]))
        assert seen is not None
        disturbed.append(module)
        return out + (1 - seen) * torch.randn_like(out) * 100

    images = torch.randn(2, 3, 64, 96)
    wanted = backbone(images, Visibility(visible))
    for module in backbone.modules():
        if isinstance(module, (nn.Conv2d, nn.LayerNorm)):
            module.register_forward_hook(disturb)
    got = backbone(images, Visibility(visible))
    assert len(disturbed) >= 20
    for a, b in zip(wanted, got, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", FAMILIES)
def test_without_a_mask_it_is_timms_own_network(name: str) -> None:
    model = timm.create_model(name, num_classes=0).eval()
    backbone = create_backbone(name).eval()
    backbone.load_state_dict({k: v for k, v in model.state_dict().items() if k in backbone.state_dict()})
    x = torch.randn(1, 3, 64, 64)
    everything = torch.ones(1, 1, 64, 64, dtype=torch.bool)
    with torch.no_grad():
        wanted = model.forward_intermediates(x, indices=4, intermediates_only=True)
        for visibility in (Visibility(None), Visibility(everything)):
            for a, b in zip(backbone(x, visibility), wanted, strict=True):
                torch.testing.assert_close(a, b)  # 1x1 convolutions may be ordered otherwise: not bit-equal
    assert set(backbone.state_dict()) <= set(model.state_dict())  # timm's names


def test_dense_norm_times_mask_is_gather_normalise_scatter() -> None:
    """One ConvNeXt block against the sparse computation: gather the visible positions, run norm and MLP, scatter."""
    backbone = seeded_backbone("convnext_atto")
    assert isinstance(backbone, MaskedConvNeXt)
    block = backbone.stages[0].blocks[0]
    visible = blocks()
    here = nn.functional.max_pool2d(visible.float(), 4)
    x = torch.randn(2, 40, 16, 24) * here
    spread = block.conv_dw(x).permute(0, 2, 3, 1)  # (2, 16, 24, 40)
    chosen = here[:, 0].bool()
    gathered = spread[chosen][:, :, None, None]  # (n, 40, 1, 1): visible positions only
    gathered = block.mlp(block.norm(gathered)) * block.gamma.reshape(1, -1, 1, 1)
    wanted = torch.zeros(2, 16, 24, 40)
    wanted[chosen] = gathered[:, :, 0, 0]
    wanted = wanted.permute(0, 3, 1, 2) + x
    torch.testing.assert_close(backbone._block(block, x, Visibility(visible)), wanted)


def test_masked_batch_norm_is_that_of_the_gathered_positions() -> None:
    torch.manual_seed(0)
    masked, gathered = nn.BatchNorm2d(5), nn.BatchNorm2d(5)
    nn.init.normal_(masked.weight)
    nn.init.normal_(masked.bias)
    gathered.load_state_dict(masked.state_dict())
    visible = block_mask((3,), (16, 16), block=4, ratio=0.4, generator=torch.Generator().manual_seed(0))[:, None]
    x = torch.randn(3, 5, 16, 16) * 3 + 1
    out = masked_batch_norm(masked, x, Visibility(visible))
    rows = x.permute(0, 2, 3, 1)[visible[:, 0]]  # (n, 5)
    wanted = torch.zeros(3, 16, 16, 5)
    wanted[visible[:, 0]] = gathered(rows[:, :, None, None])[:, :, 0, 0]
    torch.testing.assert_close(out, wanted.permute(0, 3, 1, 2))
    for a, b in zip(masked.buffers(), gathered.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_of_hidden_pixels_are_zero_with_checkpointing_too() -> None:
    for checkpointing in (False, True):
        torch.manual_seed(0)
        backbone = create_backbone("convnext_atto", checkpointing=checkpointing).train()
        visible = blocks()
        images = torch.randn(2, 3, 64, 96, requires_grad=True)
        sum(f.square().sum() for f in backbone(images, Visibility(visible))).backward()
        assert images.grad is not None
        assert (images.grad[~visible.expand_as(images)] == 0).all()
        assert (images.grad[visible.expand_as(images)] != 0).float().mean() > 0.9


@pytest.mark.parametrize("size", [(64, 96), (50, 75)])
@pytest.mark.parametrize("token", [False, True])
def test_encoder_keeps_hidden_pixels_out_at_any_size(size: tuple[int, int], token: bool) -> None:
    torch.manual_seed(0)
    sizes = {"stride": 8, "neck_channels": 16, "lift_channels": 8, "depth_bins": 6}
    encoder = ImageEncoder(create_backbone("convnext_atto"), **sizes, mask_token=token, levels=3).eval()
    if encoder.tokens is not None:
        for parameter in encoder.tokens:
            nn.init.normal_(parameter)
    pixels = torch.rand(2, 20, 2) * torch.tensor([size[1], size[0]])
    visible = blocks(size)[:, 0] & ray_mask(pixels, size, cell=3)  # cells finer than the strides
    images = torch.rand(2, 3, *size)
    changed = torch.where(visible[:, None], images, torch.rand(2, 3, *size))
    features, probs, covered = encoder(images, visible)
    assert covered == (64, 96)
    assert [tuple(f.shape) for f in features] == [(2, 8, 8, 12), (2, 8, 4, 6), (2, 8, 2, 3)]
    assert [tuple(p.shape) for p in probs] == [(2, 6, 8, 12), (2, 6, 4, 6), (2, 6, 2, 3)]
    others, whole = encoder(changed, visible), encoder(images)
    for i in range(3):
        torch.testing.assert_close(probs[i].sum(1), torch.ones(2, *probs[i].shape[2:]))
        assert torch.equal(features[i], others[0][i])
        assert torch.equal(probs[i], others[1][i])
        assert not torch.equal(features[i], whole[0][i])


def test_encoder_refuses_a_stride_that_no_stage_has() -> None:
    with pytest.raises(ValueError, match="feature stride"):
        ImageEncoder(create_backbone("convnext_atto"), stride=5, neck_channels=8, lift_channels=8, depth_bins=4)
    sizes = {"stride": 16, "neck_channels": 8, "lift_channels": 8, "depth_bins": 4}
    with pytest.raises(ValueError, match="levels wanted 1 to 2 from stride 16 on, got 3"):
        ImageEncoder(create_backbone("convnext_atto"), **sizes, levels=3)


@pytest.mark.parametrize(
    "name, words",
    [
        ("convnext_atom", "did you mean"),
        ("vit_tiny_patch16_224", "no mask can follow"),
        ("seresnet50", "channel attention"),
        ("resnetaa50", "blur filter"),
        ("resnet50_gn", "GroupNorm"),
    ],
)
def test_other_backbones_are_refused_by_name(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        create_backbone(name)


def test_an_unreachable_hub_is_a_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **kwargs: object) -> nn.Module:
        if pretrained:
            raise OSError("no route to host\nmore")
        return create(name, pretrained=False, **kwargs)

    monkeypatch.setattr(weights.timm, "create_model", offline)
    with pytest.warns(UserWarning, match=r"no route to host\): .*random weights.*model\.backbone_checkpoint"):
        create_backbone("convnext_atto", pretrained=True)


@pytest.mark.parametrize(
    "name, kind",
    [
        ("convnext_atto", "timm.safetensors"),
        ("resnet18", "timm.pth"),
        ("resnet18", "nested.pth"),
        ("convnext_atto", "original.pth"),
    ],
)
def test_weights_from_a_file(tmp_path, name: str, kind: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7)
    state = model.state_dict()
    path = tmp_path / kind
    if kind.endswith("safetensors"):
        from safetensors.torch import save_file

        save_file(state, path)
    elif kind == "nested.pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, path)
    elif kind == "original.pth":
        torch.save({"model": original_names(state)}, path)
    else:
        torch.save(state, path)
    backbone = create_backbone(name, checkpoint_file=str(path))
    for key, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, state[key]), key


def original_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """timm's ConvNeXt names to those of the original release."""
    renamed = {}
    for key, tensor in state.items():
        if key.startswith("stem."):
            key = key.replace("stem.", "downsample_layers.0.")
        elif ".downsample." in key:
            stage = key.split(".")[1]
            key = f"downsample_layers.{stage}." + key.split(".downsample.")[1]
        key = key.replace(".blocks.", ".").replace("conv_dw", "dwconv").replace("mlp.fc1", "pwconv1")
        key = key.replace("mlp.fc2", "pwconv2").replace("head.norm", "norm").replace("head.fc", "head")
        if "pwconv" in key and key.endswith("weight"):
            tensor = tensor[:, :, 0, 0]
        renamed[key] = tensor
    return renamed


def test_a_file_that_does_not_fit_is_named(tmp_path) -> None:
    with pytest.raises(UserError, match="no such file"):
        create_backbone("resnet18", checkpoint_file=str(tmp_path / "none.pth"))
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"not weights")
    with pytest.raises(UserError, match=r"broken\.pth cannot be read"):
        create_backbone("resnet18", checkpoint_file=str(broken))
    other = tmp_path / "other.pth"
    torch.save(timm.create_model("resnet26d").state_dict(), other)
    with pytest.raises(UserError, match=r"other\.pth"):
        create_backbone("resnet18", checkpoint_file=str(other))
    torch.save({"epoch": 3}, other)
    with pytest.raises(UserError, match="no tensors"):
        create_backbone("resnet18", checkpoint_file=str(other))
