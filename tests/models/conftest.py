"""The model needs timm; without the [train] extra these tests are skipped."""

from __future__ import annotations

import pytest

pytest.importorskip("timm")
