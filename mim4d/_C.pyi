"""Facts about the native build. No tensors pass through here."""

from typing import ClassVar

class Mode:
    trilinear: ClassVar[Mode]
    smoothstep: ClassVar[Mode]
    bicubic: ClassVar[Mode]
    tricubic: ClassVar[Mode]
    __members__: ClassVar[dict[str, Mode]]
    def __int__(self) -> int: ...

class Padding:
    zeros: ClassVar[Padding]
    border: ClassVar[Padding]
    __members__: ClassVar[dict[str, Padding]]
    def __int__(self) -> int: ...

def build_info() -> dict[str, str]: ...
def cpu_isa() -> str: ...
def kernel_attributes() -> list[dict[str, int | str]]: ...
