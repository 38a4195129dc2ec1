"""One module per op, named as the op; each has ``cases(preset, device)`` and ``PRESETS``."""
