"""A synthetic driving world in the nuScenes format: streets, houses, traffic, six cameras and a LiDAR.

:func:`generate` writes a data set; :func:`open_scene` gives a scene of it back as a function of time: the ground truth.
"""

try:
    from mim4d.world.generator import generate, open_scene
    from mim4d.world.knobs import Knobs
except ModuleNotFoundError as e:
    if (e.name or "").partition(".")[0] != "PIL":
        raise
    raise ModuleNotFoundError("the synthetic world needs pillow: pip install 'mim4d[world]'", name=e.name) from None

__all__ = ["Knobs", "generate", "open_scene"]
