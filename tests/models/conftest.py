"""The model needs timm: without the [train] extra there is nothing to collect here."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("timm") else ["test_*.py"]
