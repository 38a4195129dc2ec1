"""The training side: configuration, the pre-training loop, evaluation, checkpoints, pictures.

Needs the ``[train]`` extra. Nothing in :mod:`mim4d.ops` or :mod:`mim4d.nn` imports from here.
"""
