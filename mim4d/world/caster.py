"""Casts rays at triangles: the package's own caster (csrc/world/rays.cpp), or embreex where that is not built.

The own caster gives the same bits on every machine. Embree chooses its kernels by the CPU: measured between its SSE2,
AVX2 and AVX-512 kernels, 1 ray in 40 000 meets another triangle (at edges) and every third distance differs in its last
bits. A world made with it is as good, but its bytes hold for CPUs of the same kind only.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mim4d.errors import UserError

Float32 = NDArray[np.float32]
Ints = NDArray[np.int32]
LIBRARY = Path(__file__).parents[1] / "world_rays.so"
ABI = 1  # of csrc/world/rays.cpp: the signatures that `_library` declares


class Caster(Protocol):
    """Triangles (F, 3, 3) float32, made ready for rays. All arrays are float32 unless they say otherwise."""

    def nearest(
        self, origins: Float32, directions: Float32, distance: Float32, face: Ints, u: Float32, v: Float32
    ) -> None:
        """Where rays meet a triangle nearer than ``distance`` (P,), writes what they meet; leaves the rest as it is.

        origins (3,) or (P, 3); directions (P, 3), unit. face (P,) int32 is the triangle's number, u and v (P,) the
        weights of its second and third corner. Both sides of a triangle count.
        """

    def blocked(self, origins: Float32, direction: Float32) -> NDArray[np.bool_]:
        """Whether rays from origins (P, 3) along one direction (3,) meet anything, (P,)."""


@functools.cache
def _library() -> Any:
    """The native functions; None where they are not built. UserError where they do not load or are of another build."""
    if not LIBRARY.exists():
        return None
    again = "build mim4d's native libraries again: make setup"
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError as e:
        raise UserError(f"{LIBRARY} cannot be loaded ({e}); {again}") from None
    abi = library.mim4d_rays_abi() if hasattr(library, "mim4d_rays_abi") else 0
    if abi != ABI:
        raise UserError(f"{LIBRARY} was built from other sources (interface {abi}, wanted {ABI}); {again}")
    array = functools.partial(np.ctypeslib.ndpointer, flags="C_CONTIGUOUS")
    floats, ints, flags = array(np.float32), array(np.int32), array(np.uint8)
    tree, number = ctypes.c_void_p, ctypes.c_int64
    library.mim4d_rays_grow.argtypes, library.mim4d_rays_grow.restype = (floats, ctypes.c_int32), tree
    library.mim4d_rays_fell.argtypes, library.mim4d_rays_fell.restype = (tree,), None
    cast, block = library.mim4d_rays_cast, library.mim4d_rays_block
    cast.argtypes, cast.restype = (tree, floats, number, floats, number, floats, ints, floats, floats), None
    block.argtypes, block.restype = (tree, floats, floats, number, number, flags), None
    return library


class Native:
    def __init__(self, vertices: Float32) -> None:
        self._call = _library()
        self._tree = self._call.mim4d_rays_grow(_plain(vertices), len(vertices))
        if not self._tree:
            raise MemoryError(f"no memory for a ray caster of {len(vertices)} triangles")
        weakref.finalize(self, self._call.mim4d_rays_fell, self._tree)

    def nearest(
        self, origins: Float32, directions: Float32, distance: Float32, face: Ints, u: Float32, v: Float32
    ) -> None:
        n, one = len(directions), origins.size == 3
        if not one and len(origins) < n:  # the native function would read past their end
            raise ValueError(f"{n} rays have {len(origins)} origins")
        stride = 0 if one else 3
        self._call.mim4d_rays_cast(self._tree, _plain(origins), stride, _plain(directions), n, distance, face, u, v)

    def blocked(self, origins: Float32, direction: Float32) -> NDArray[np.bool_]:
        out = np.zeros(len(origins), np.uint8)
        self._call.mim4d_rays_block(self._tree, _plain(origins), _plain(direction), 0, len(origins), out)
        return out.view(np.bool_)


def _embree() -> tuple[Any, Any]:
    """Embree's mesh and scene. UserError where embreex is missing."""
    try:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene
    except ImportError as e:
        raise UserError(
            f"the synthetic world needs mim4d's native library {LIBRARY.name} (not built) or embreex ({e}): "
            "pip install 'mim4d[world]'"
        ) from None
    return TriangleMesh, EmbreeScene


class Embree:
    def __init__(self, vertices: Float32) -> None:
        mesh, scene = _embree()
        self._scene = scene()
        mesh(self._scene, _plain(vertices))

    def nearest(
        self, origins: Float32, directions: Float32, distance: Float32, face: Ints, u: Float32, v: Float32
    ) -> None:
        hit = self._scene.run(_plain(np.broadcast_to(origins, directions.shape)), _plain(directions), output=1)
        at = np.flatnonzero((hit["primID"] >= 0) & (hit["tfar"] < distance))
        distance[at], face[at], u[at], v[at] = (hit[k][at] for k in ("tfar", "primID", "u", "v"))

    def blocked(self, origins: Float32, direction: Float32) -> NDArray[np.bool_]:
        directions = _plain(np.broadcast_to(direction, origins.shape))
        return np.asarray(self._scene.run(_plain(origins), directions, query="OCCLUDED") >= 0)


def _plain(x: Float32) -> Float32:
    return np.ascontiguousarray(x, np.float32)


def caster_kind() -> str:
    """Which caster :func:`make_caster` makes, "native" or "embree". UserError where there is neither."""
    if _library() is not None:
        return "native"
    _embree()
    return "embree"


def make_caster(vertices: Float32) -> Caster:
    """A caster for triangles (F, 3, 3). UserError where there is neither the native library nor embreex."""
    return Native(vertices) if _library() is not None else Embree(vertices)
