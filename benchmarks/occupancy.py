"""Theoretical occupancy of a kernel: which share of an SM's warps can be resident, and what limits it.

The arithmetic that cudaOccupancyMaxActiveBlocksPerMultiprocessor does, without a device: tests/test_occupancy.py
compares it with NVIDIA's cuda_occupancy.h over a grid of kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

WARP = 32
REGISTERS = 64 * 1024  # of an SM
REGISTER_UNIT = 256  # registers are given to a warp in multiples of it
PARTITIONS = 4  # of an SM: each holds a quarter of the registers, and a warp lives in one of them
SHARED_UNIT = 128  # bytes
SHARED_RESERVED = 1024  # bytes of every block that belong to the driver


@dataclass(frozen=True)
class Limits:
    """What differs between the architectures; of one SM."""

    warps: int
    blocks: int
    shared: int  # bytes
    barriers: int | None  # None: the calculator does not count them before 9.0


# CUDA C++ Programming Guide (13.0), "Compute Capabilities", table "Technical Specifications per Compute Capability":
# maximum number of resident warps and blocks per SM, amount of shared memory per SM. cuda::arch_traits of CCCL 3 has
# the same numbers. The units of allocation above, and the barriers, are those of cuda_occupancy.h.
LIMITS = {
    "80": Limits(warps=64, blocks=32, shared=164 * 1024, barriers=None),
    "86": Limits(warps=48, blocks=16, shared=100 * 1024, barriers=None),
    "89": Limits(warps=48, blocks=24, shared=100 * 1024, barriers=None),
    "90": Limits(warps=64, blocks=32, shared=228 * 1024, barriers=64),
    "100": Limits(warps=64, blocks=32, shared=228 * 1024, barriers=64),
    "120": Limits(warps=48, blocks=24, shared=100 * 1024, barriers=24),
}


@dataclass(frozen=True)
class Occupancy:
    blocks: int  # resident on an SM
    share: float  # of the SM's warps
    limits: tuple[str, ...]  # what allows no further block: warps, registers, shared memory, blocks, barriers


def round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def occupancy(arch: str, threads: int, registers: int, shared: int = 0, barriers: int = 0) -> Occupancy:
    """Of blocks of ``threads`` threads with ``registers`` each, ``shared`` bytes of static shared memory a block: of a
    kernel that nvcc has compiled, so at most 1024, 255 and 48 KiB."""
    sm = LIMITS[arch]
    warps = -(-threads // WARP)
    registers_of_warp = round_up(registers * WARP, REGISTER_UNIT)
    bytes_of_block = round_up(shared + SHARED_RESERVED, SHARED_UNIT)
    allowed = {
        "warps": sm.warps // warps,
        "registers": REGISTERS // PARTITIONS // registers_of_warp * PARTITIONS // warps,
        "shared memory": sm.shared // bytes_of_block,
        "blocks": sm.blocks,
    }
    if sm.barriers and barriers:
        allowed["barriers"] = sm.barriers // barriers
    blocks = min(allowed.values())
    return Occupancy(blocks, blocks * warps / sm.warps, tuple(name for name, n in allowed.items() if n == blocks))
