"""The pre-training model, part by part. Needs the ``[train]`` extra (timm)."""

from .mim4d import MIM4D, ModelConfig, Output, build_model

__all__ = ["MIM4D", "ModelConfig", "Output", "build_model"]
