"""Build facts and enums of the native code. No tensors pass through here."""

from enum import IntEnum

class Mode(IntEnum):
    trilinear = 0
    smoothstep = 1
    bicubic = 2
    tricubic = 3

class Padding(IntEnum):
    zeros = 0
    border = 1

def build_info() -> dict[str, str]: ...
def cpu_isa() -> str: ...
def kernel_attributes() -> list[dict[str, int | str]]: ...
