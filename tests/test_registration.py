"""Every op as torch sees it: schemas, keys, fakes, signatures, enums; and that importing them needs torch alone."""

from __future__ import annotations

import inspect

import pytest
import torch
from helpers.process import python

from mim4d import _library, backends, ops
from mim4d.ops._modes import MODES, PADDING

READING = "mode='trilinear', padding_mode='zeros', align_corners=False"
SIGNATURES = {
    "voxel_sample": f"volume, points, *, {READING}",
    "voxel_sample_with_grad": f"volume, points, *, {READING}",
    "sdf_sample": "volume, origins, directions, near, far, sdf_weights, *, aabb, jitter=None, n_uniform=72, "
    f"n_importance=24, sharpness=64.0, {READING}",
    "sdf_march": "volume, origins, directions, edges, sdf_weights, rgb_weights, inv_s, *, aabb, "
    f"{READING}, cos_anneal=1.0",
    "ms_deform_attn": "value, spatial_shapes, level_start_index, sampling_locations, attention_weights",
    "voxel_pool": "depth_probs, features, cells, grid_shape",
    "build_pool_index": "cells, grid_shape",
    "voxel_pull": "features, depth_probs, uvd",
    "use_backend": "name",
}
has_key = torch._C._dispatch_has_kernel_for_dispatch_key


def test_public_names_and_signatures() -> None:
    functions = {name: getattr(ops, name) for name in ops.__all__ if inspect.isfunction(getattr(ops, name))}
    assert set(functions) == set(SIGNATURES)
    for name, function in functions.items():
        parameters = inspect.signature(function).parameters.values()
        bare = inspect.Signature([p.replace(annotation=inspect.Parameter.empty) for p in parameters])
        assert str(bare) == f"({SIGNATURES[name]})", name


def test_every_public_function_documents_itself() -> None:
    for name in ops.__all__:
        assert len(getattr(ops, name).__doc__ or "") > 80, name


@pytest.mark.parametrize("op", _library.schemas)
def test_every_op_works_with_nothing_built(op: str) -> None:
    """A reference under CompositeExplicitAutograd, an autograd formula or a refusal, a fake."""
    assert has_key(f"mim4d::{op}", "CompositeExplicitAutograd")
    assert has_key(f"mim4d::{op}", "Autograd")
    assert torch._library.simple_registry.singleton.find(f"mim4d::{op}").fake_impl.kernel is not None
    assert str(getattr(torch.ops.mim4d, op).default._schema) == f"mim4d::{_library.schemas[op]}"


@pytest.mark.parametrize("op", [op for op in _library.schemas if op.endswith("_backward")])
def test_backward_ops_follow_the_house(op: str) -> None:
    """They belong to an op, take a mask of what is wanted, and modes as ints."""
    schema = _library.schemas[op]
    assert op.removesuffix("_backward").removesuffix("_double") in _library.schemas
    assert "] mask)" in schema
    assert "str " not in schema


@pytest.mark.parametrize("backend, key", [("cpu", "CPU"), ("cuda", "CUDA")])
def test_native_kernels_are_registered_without_a_gpu(backend: str, key: str) -> None:
    library = _library.KEYS[backend][0]
    if library not in _library.loaded:
        pytest.skip(f"{library}: {_library.failures[library]}")
    native = [op for op, known in backends._predicates.items() if backend in known]
    assert "voxel_sample" in native
    for op in native:
        assert has_key(f"mim4d::{op}", key), op
        assert f"{op}_backward" not in _library.schemas or has_key(f"mim4d::{op}_backward", key), op


def test_enums_of_cpp_and_python_agree() -> None:
    module = _library.extension()
    if isinstance(module, str):
        pytest.skip(f"mim4d._C: {module}")
    assert {name: int(value) for name, value in module.Mode.__members__.items()} == MODES
    assert {name: int(value) for name, value in module.Padding.__members__.items()} == PADDING


def test_build_info() -> None:
    info = _library.build_info()
    if not info:
        pytest.skip("mim4d._C is not built")
    assert set(info) == {"torch", "cuda", "archs", "compiler", "build_type", "revision"}
    assert info["build_type"] == "Release"
    assert info["torch"]


def test_kernel_attributes_need_cuda() -> None:
    if torch.cuda.is_available() and "ops_cuda" in _library.loaded:
        kernels = _library.kernel_attributes()
        assert any("voxel_sample_forward" in str(kernel["name"]) for kernel in kernels)
        spilling = {kernel["name"] for kernel in kernels if kernel["local_bytes"]}
        assert spilling <= {"sdf_march_backward<float, true>"}  # csrc/allowed_spills.txt
    else:
        with pytest.raises(RuntimeError, match=r"CUDA|mim4d\._C is not there"):
            _library.kernel_attributes()


def test_importing_the_ops_needs_torch_and_numpy_alone() -> None:
    program = (
        "import sys, mim4d.ops, mim4d.nn\n"
        "extras = {'timm', 'nuscenes', 'accelerate', 'tyro', 'rich', 'PIL', 'matplotlib', 'embreex', 'torchvision'}\n"
        "print(sorted(extras & set(sys.modules)))"
    )
    done = python(program)
    assert done.stdout.strip() == "[]"
