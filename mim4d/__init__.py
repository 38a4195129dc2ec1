"""mim4d: kernels for masked multi-view video pre-training, and the method on top of them.

``import mim4d`` needs torch and numpy alone. The doors: :mod:`mim4d.ops` (kernels), :mod:`mim4d.nn` (thin modules),
and the ``mim4d`` command (pre-training and pictures, with the ``[train]`` extra).
"""

__version__ = "0.1.0"
