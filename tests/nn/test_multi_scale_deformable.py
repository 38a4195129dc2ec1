"""The drop-ins: mmcv's function against the op, models of the transformers library with and without the patch."""

from __future__ import annotations

import pytest
import torch
from helpers.infos.ms_deform_attn import INFO
from torch import Tensor, nn

from mim4d import nn as drop_ins
from mim4d import ops


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_call_of_mmcv(dtype: torch.dtype) -> None:
    """Everything in one dtype, as mmcv's callers have it; the step is ignored, for B = 2 is no multiple of 64."""
    value, shapes, starts, locations, weights = INFO.sample("", {}).args
    value, locations, weights = (t.to(dtype).requires_grad_() for t in (value, locations, weights))
    out = drop_ins.MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)
    assert out.dtype == dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    wanted = ops.ms_deform_attn(value, shapes, starts, locations.to(wide), weights)
    assert torch.equal(out, wanted)
    for a, b in zip(*(torch.autograd.grad(x.sum(), (value, locations, weights)) for x in (out, wanted)), strict=True):
        assert torch.equal(a, b)


def deformable_detr() -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: its models are not there")
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, out_features=["stage2", "stage3", "stage4"]
    )
    config = transformers.DeformableDetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone,
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=7, num_feature_levels=4, dropout=0.0,
        with_box_refine=True,
    )  # fmt: skip
    return transformers.DeformableDetrForObjectDetection(config)


def rt_detr() -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: its models are not there")
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.RTDetrConfig(
        backbone_config=backbone, backbone=None, use_pretrained_backbone=False, encoder_hidden_dim=16, d_model=32,
        encoder_in_channels=[8, 8, 8], feat_strides=[8, 16, 32], encoder_ffn_dim=16, encoder_attention_heads=4,
        decoder_in_channels=[16, 16, 16], decoder_ffn_dim=16, decoder_attention_heads=4, decoder_layers=2,
        num_queries=7, num_denoising=0, anchor_image_size=None,
    )  # fmt: skip
    return transformers.RTDetrForObjectDetection(config)


@pytest.mark.parametrize("make", [deformable_detr, rt_detr])
def test_a_model_with_and_without_the_patch(make: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights, in float64: boxes, logits and the gradient of every parameter agree, and the op was called."""
    torch.manual_seed(0)
    model = make().double().eval()  # type: ignore[operator]
    for name, parameter in model.named_parameters():  # else all points of a query lie in one place, on cell borders
        if "sampling_offsets" in name or "attention_weights" in name:
            nn.init.normal_(parameter, std=0.3)
    names = list(model.state_dict())
    image = torch.randn(2, 3, 64, 96, dtype=torch.float64)

    def run() -> list[Tensor]:
        model.zero_grad()
        found = model(pixel_values=image)
        (found.logits.square().sum() + found.pred_boxes.square().sum()).backward()
        return [found.logits, found.pred_boxes, *(p.grad for p in model.parameters() if p.grad is not None)]

    calls = []
    op = ops.ms_deform_attn
    monkeypatch.setattr(ops, "ms_deform_attn", lambda *args: calls.append(1) or op(*args))
    plain = run()
    assert not calls
    assert drop_ins.patch_transformers(model) is model
    patched = run()
    assert len(calls) >= 2
    assert list(model.state_dict()) == names
    assert len(plain) == len(patched) > 50
    for a, b in zip(plain, patched, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_a_model_that_has_none() -> None:
    with pytest.raises(ValueError, match=r"patch_transformers: Linear has no MultiScaleDeformableAttention, wanted"):
        drop_ins.patch_transformers(nn.Linear(2, 3))
