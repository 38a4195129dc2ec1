"""A synthetic driving world in the nuScenes format: streets, houses, traffic, six cameras and a LiDAR.

:func:`generate` writes a data set; :func:`open_scene` gives a scene of it back as a function of time: the ground truth.
"""

from mim4d.world.generator import generate, open_scene

__all__ = ["generate", "open_scene"]
