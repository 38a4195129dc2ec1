"""Triton's kernels, run on the CPU by its interpreter, pass the contract of their op; and a wrong one does not.

In processes of their own: the interpreter is chosen by TRITON_INTERPRET when triton and the kernels are imported.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.process import python

TESTS = Path(__file__).parent

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

# Two checks make hundreds of calls, at 0.05 s a program; a smaller one stands below for the derivatives. For leaks the
# interpreter is no witness: without the garbage collector, which that check switches off, its own cycles pile up. The
# ops whose loops within loops take a second a call are left with the checks that make few calls.
FEW = ("float32", "float64", "degenerate", "odd", "layouts", "graph", "refused", "without_autograd", "opcheck")
LEFT_OUT = "differences or leaks"
SELECTION = f"triton and interpreted and not ({LEFT_OUT}) and (not (sdf_ or voxel_pull) or {' or '.join(FEW)})"


def interpreted(program: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    return python(program, TRITON_INTERPRET="1", PYTHONPATH=path, OMP_NUM_THREADS="1")


@pytest.mark.slow
def test_the_contract_holds_interpreted() -> None:
    variables = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-k", SELECTION]
    done = subprocess.run(
        [*command, "ops/test_contract.py"], cwd=TESTS, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    # for each op: values and degenerate sizes in four dtypes each, and the properties that every run has
    assert passed is not None
    assert int(passed[1]) >= 12 * len(FAULTS), done.stdout[-2000:]


FAULTS = {  # op -> function of its kernels, constant, wrong value
    "voxel_sample": [("forward_constants", "ALIGN", True), ("backward_constants", "SMOOTH", True)],
    "ms_deform_attn": [("forward_constants", "D", 4), ("backward_constants", "BLOCK_D", 4)],
    "voxel_pool": [("forward_constants", "C", 3), ("backward_constants", "BLOCK_C", 2)],
    "voxel_pull": [("forward_constants", "BLOCK_C", 2), ("backward_constants", "BLOCK_C", 2)],
    "sdf_march": [("field_constants", "SMOOTH", True), ("field_constants", "BLOCK_H", 2)],
}


@pytest.fixture(scope="module")
def planted() -> subprocess.CompletedProcess[str]:
    """All of FAULTS in one process, whose start costs more than they do: a line for each, or what went wrong."""
    return interpreted(
        "import importlib, torch, traceback\n"
        "from helpers import contract\n"
        "from helpers.cases import generator\n"
        "from helpers.infos import OPS\n"
        f"for op, faults in {FAULTS!r}.items():\n"
        "    try:\n"
        "        kernels = importlib.import_module(f'mim4d.kernels.{op}')\n"
        "        info = next(info for info in OPS if info.op == op)\n"
        "        def check():\n"
        "            contract.check_values(info, ('triton', 'cpu'), torch.float64, [info.samples(generator())[0]])\n"
        "        torch.manual_seed(0)\n"
        "        check()\n"
        "        for name, constant, wrong in faults:\n"
        "            right = getattr(kernels, name)\n"
        "            setattr(kernels, name, lambda *a, **k: {**right(*a, **k), constant: wrong})\n"
        "            try:\n"
        "                check()\n"
        "            except AssertionError as error:\n"
        "                print(op, name, 'element error' in str(error) or 'NaN' in str(error))\n"
        "            setattr(kernels, name, right)\n"
        "    except Exception:\n"
        "        print(op, repr(traceback.format_exc()))\n"
    )


@pytest.mark.parametrize("op", FAULTS)
def test_a_wrong_kernel_breaks_the_contract(op: str, planted: subprocess.CompletedProcess[str]) -> None:
    assert planted.returncode == 0, planted.stderr
    found = [line for line in planted.stdout.splitlines() if line.split()[0] == op]
    assert found == [f"{op} {name} True" for name, _, _ in FAULTS[op]]


def test_second_derivatives_and_one_graph() -> None:
    """The formula of mim4d_triton::voxel_sample_backward; no break, no recompilation for another size."""
    done = interpreted(
        "import torch\n"
        "from torch._dynamo.testing import CompileCounterWithBackend\n"
        "from mim4d import ops\n"
        "torch.manual_seed(0)\n"
        "def inputs(n):\n"
        "    v, p = torch.randn(1, 1, 1, 2, 2), torch.rand(1, n, 3) * 0.8 - 0.4\n"
        "    return v.double().requires_grad_(), p.double().requires_grad_()\n"
        "def read(v, p):\n"
        "    return ops.voxel_sample(v, p, mode='smoothstep')\n"
        "counter = CompileCounterWithBackend('aot_eager')\n"
        "compiled = torch.compile(read, fullgraph=True, dynamic=True, backend=counter)\n"
        "with ops.use_backend('triton'):\n"
        "    torch.autograd.gradcheck(read, inputs(1), nondet_tol=1e-12)\n"
        "    torch.autograd.gradgradcheck(read, inputs(1), nondet_tol=1e-12)\n"
        "    for n in (5, 9, 14):\n"
        "        v, p = inputs(n)\n"
        "        got, want = (torch.autograd.grad(f(v, p).sin().sum(), (v, p)) for f in (compiled, read))\n"
        "        for a, b in zip(got, want):\n"
        "            torch.testing.assert_close(a, b, rtol=0, atol=1e-13)\n"  # the same kernels: measured 0
        "print(counter.frame_count)\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1"


def test_more_channels_and_points_than_a_tile_has() -> None:
    """130 channels are two passes of a program, 300 points with them three programs an item."""
    done = interpreted(
        "import torch\n"
        "from mim4d import ops\n"
        "torch.manual_seed(0)\n"
        "v, p = torch.randn(2, 130, 2, 3, 4).double(), torch.rand(2, 300, 3).double() * 2.4 - 1.2\n"
        "g = torch.randn(2, 300, 130).double()\n"
        "def run(backend):\n"
        "    inputs = v.clone().requires_grad_(), p.clone().requires_grad_()\n"
        "    with ops.use_backend(backend):\n"
        "        out = ops.voxel_sample(*inputs)\n"
        "    return out, *torch.autograd.grad(out, inputs, g)\n"
        "for got, want in zip(run('triton'), run('reference')):\n"
        "    error = float((got - want).detach().abs().max() / want.detach().abs().max())\n"
        "    assert error < 1e-14, error\n"  # measured: 4e-16
    )
    assert done.returncode == 0, done.stderr


def test_a_nan_is_hidden_by_no_limit() -> None:
    """`tl.maximum` and `tl.minimum` give the other number."""
    done = interpreted(
        "import pytest, sys\n"
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-k', 'is_not_hidden and triton',\n"
        f"    {str(TESTS / 'ops' / 'test_sdf_march.py')!r}]))\n"
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_where_triton_runs_and_why_not_elsewhere() -> None:
    program = (
        "import sys, torch\n"
        "from mim4d import backends, ops\n"
        "assert 'mim4d.kernels.voxel_sample' not in sys.modules  # it imports triton: at the first call\n"
        "ask = lambda device, dtype=torch.float32, op='voxel_sample': print(\n"
        "    backends.reason_against(op, 'triton', torch.device(device), dtype=dtype, mode='tricubic'))\n"
        "ask('cpu'), ask('cuda'), ask('meta'), ask('cuda', torch.int32), ask('cuda', op='voxel_sample_with_grad')\n"
        "torch.use_deterministic_algorithms(True)\n"
        "ask('cuda')\n"
    )
    on_cpu, on_cuda, on_meta, ints, with_grad, deterministic = interpreted(program).stdout.splitlines()
    assert (on_cpu, on_cuda) == ("None", "None")
    assert on_meta.startswith("it runs on cuda tensors, not on meta")
    assert ints == "its kernel reads float16, bfloat16, float32 and float64, not torch.int32"
    assert with_grad == "no kernel is written for it"
    assert deterministic == "its backward adds in no fixed order, and torch.use_deterministic_algorithms is on"

    compiled = python(program, TRITON_INTERPRET="0").stdout.splitlines()
    assert compiled[0] == (
        "it runs on cuda tensors, not on cpu (on cpu interpreted: TRITON_INTERPRET=1 before mim4d is imported)"
    )
    assert compiled[1:] == [on_cuda, on_meta, ints, with_grad, deterministic]

    absent = python("import sys; sys.modules['triton'] = None\n" + program).stdout.splitlines()
    assert absent[1] == "triton is not installed (it comes with torch's CUDA builds for Linux)"


@pytest.mark.parametrize("interpret", ["0", "1"])
def test_the_op_of_the_dispatcher_follows_no_wrong_size(interpret: str) -> None:
    program = (
        "import torch, mim4d.ops\n"
        "op, v, p = torch.ops.mim4d_triton.voxel_sample, torch.zeros(2, 1, 1, 1, 1), torch.zeros(2, 4, 3)\n"
        "for bad in ((v, p[:1]), (v, p[..., :2]), (v[0], p), (v.double(), p), (v.int(), p), (v, p)):\n"
        "    try:\n"
        "        print(tuple(op(*bad, 0, 0, False).shape))\n"
        "    except RuntimeError as error:\n"
        "        print(str(error).splitlines()[0])\n"
    )
    *bad, good = python(program, TRITON_INTERPRET=interpret).stdout.splitlines()
    assert len(bad) == 5
    assert all(line.startswith("mim4d_triton::voxel_sample: ") for line in bad)
    if interpret == "1":
        assert good == "(2, 4, 1)"
    else:
        assert "Triton reads CPU tensors in its interpreter alone" in good


def test_more_queries_and_channels_than_a_tile_has() -> None:
    """300 rows of heads of 65 channels, 128 of them in the tile of a program: three programs."""
    done = interpreted(
        "import torch\n"
        "from helpers.infos.ms_deform_attn import build\n"
        "from mim4d import ops\n"
        "sample = build(torch.Generator().manual_seed(0), B=2, Q=50, M=3, D=65, P=2, shapes=((3, 4), (2, 2)))\n"
        "value, *levels, at, weights = sample.args\n"
        "g = torch.randn(2, 50, 195).double()\n"
        "def run(backend):\n"
        "    inputs = [t.clone().requires_grad_() for t in (value, at, weights)]\n"
        "    with ops.use_backend(backend):\n"
        "        out = ops.ms_deform_attn(inputs[0], *levels, *inputs[1:])\n"
        "    return out, *torch.autograd.grad(out, inputs, g)\n"
        "for got, want in zip(run('triton'), run('reference')):\n"
        "    error = float((got - want).detach().abs().max() / want.detach().abs().max())\n"
        "    assert error < 1e-14, error\n"  # measured: 4e-16
    )
    assert done.returncode == 0, done.stderr


def test_levels() -> None:
    """Numbers of the host reach the device as arguments. Sizes and starts that do not fit the value, as only a GPU's
    may be, drop taps: those that the reference drops."""
    done = interpreted(
        "import torch, mim4d.ops\n"
        "from helpers.infos.ms_deform_attn import build\n"
        "from mim4d.reference import ms_deform_attn as reference\n"
        "value, shapes, starts, at, weights = build(torch.Generator().manual_seed(0), Q=2, P=2).args\n"
        "g, huge = torch.randn(2, 2, 10).double(), 2**62\n"
        "kept = 0\n"
        "for bad_shapes, bad_starts in (\n"
        "    ([[4, 3], [1, 1], [2, 50]], [0, 12, 13]),\n"
        "    ([[4, 3], [0, -1], [2, 5]], [-9, 12, 20]),\n"
        "    ([[huge, 3], [3, huge], [huge, huge]], [0, huge, -huge]),\n"
        "    ([[4, 3], [1, 1], [2, 5]], [10**6, 2**63 - 1, -(2**63)]),\n"
        "):\n"
        "    levels = torch.tensor(bad_shapes), torch.tensor(bad_starts)\n"
        "    got = torch.ops.mim4d_triton.ms_deform_attn(value, *levels, at, weights)\n"
        "    want = reference.ms_deform_attn(value, *levels, at, weights)\n"
        "    torch.testing.assert_close(got, want, rtol=0, atol=1e-13)\n"
        "    args = (g, value, *levels, at, weights, [True] * 3)\n"
        "    found = torch.ops.mim4d_triton.ms_deform_attn_backward(*args)\n"
        "    for got, want in zip(found, reference.ms_deform_attn_backward(*args)):\n"
        "        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)\n"
        "        kept += int(got.count_nonzero())\n"
        "assert kept > 100\n"
        "from mim4d.kernels import _numbers\n"
        "for n in (0, 1, 8, 9, 24):\n"
        "    numbers = [i * i - 5 + (i == 3) * 2**40 for i in range(n)]\n"
        "    assert _numbers.note(numbers, torch.device('cpu')).tolist() == numbers\n"
    )
    assert done.returncode == 0, done.stderr


def test_longer_rays_and_more_samples_than_a_tile_has() -> None:
    """2 rays of 300 samples: three stretches of at most 128 along the rays, and three tiles of 256 for the field."""
    done = interpreted(
        "import torch\n"
        "from helpers.infos.sdf_march import build\n"
        "from mim4d import ops\n"
        "from mim4d.kernels import sdf_march as kernels\n"
        "right = kernels.field_constants\n"
        "kernels.field_constants = lambda *a, **k: {**right(*a, **k), 'BLOCK_P': 256}\n"
        "sample = build(torch.Generator().manual_seed(0), B=1, S=300, layers=2)\n"
        "edges = sample.args[3].mul_(0.02)\n"
        "def run(backend):\n"
        "    with ops.use_backend(backend):\n"
        "        return ops.sdf_march(*sample.args, **sample.kwargs)\n"
        "for got, want in zip(run('triton'), run('reference')):\n"
        "    error = float((got - want).abs().max() / want.abs().max())\n"
        "    assert error < 2e-11, error\n"  # measured: 6e-13
    )
    assert done.returncode == 0, done.stderr


def test_levels_and_indices_of_nonsense_are_not_followed() -> None:
    """Below the wrappers, as on a GPU, where nobody looks at values: forward and backward as the reference."""
    done = interpreted(
        "import torch\n"
        "from helpers.infos.ms_deform_attn import INFO as ATTEND\n"
        "from helpers.infos.voxel_pool import INFO as POOL\n"
        "from mim4d import ops\n"
        "from mim4d.reference import ms_deform_attn as attend\n"
        "ours = torch.ops.mim4d_triton\n"
        "def check(found, wanted):\n"
        "    for a, b in zip(found, wanted, strict=True):\n"
        "        torch.testing.assert_close(a, b)\n"
        "value, shapes, starts, *rest = ATTEND.sample('', {}).args\n"
        "for start, size in ((10**6, 5), (-7, 5), (2**40, 5), (13, 2**23), (13, -5)):\n"
        "    starts, shapes = starts.clone(), shapes.clone()\n"
        "    starts[2], shapes[2, 1] = start, size\n"
        "    args = value, shapes, starts, *rest\n"
        "    grad = torch.randn(ours.ms_deform_attn(*args).shape).double()\n"
        "    check([ours.ms_deform_attn(*args)], [attend.ms_deform_attn(*args)])\n"
        "    args = grad, *args, [True] * 3\n"
        "    check(ours.ms_deform_attn_backward(*args), attend.ms_deform_attn_backward(*args))\n"
        "depth, features, cells, grid = POOL.sample('', {}).args\n"
        "index = ops.build_pool_index(cells, grid)\n"
        "wild = torch.tensor([-5, 2**31 - 1, 2**30]).int().repeat(len(index.points))[: len(index.points)]\n"
        "assert not ours.voxel_pool(depth, features, cells, wild, index.starts, grid).any()\n"
        "out = ours.voxel_pool(depth, features, cells, index.points, wild[: len(index.starts)], grid)\n"
        "far = torch.full_like(cells, 2**30)\n"
        "rest = far, index.points, index.starts, grid, [True] * 2\n"
        "assert not any(t.any() for t in ours.voxel_pool_backward(torch.ones_like(out), depth, features, *rest))\n"
    )
    assert done.returncode == 0, done.stderr
