"""``voxel_sample`` and ``voxel_sample_with_grad``: forward, backward, gradcheck, edges, determinism, contract."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from helpers.cases import RUNS, generator, points, running, volume
from helpers.process import python
from helpers.tolerances import assert_close
from torch import Tensor

from mim4d import _library, backends, ops
from mim4d.ops._modes import MODES, PADDING
from mim4d.reference import voxel_sample as reference

OP = torch.ops.mim4d.voxel_sample.default
BACKWARD = torch.ops.mim4d.voxel_sample_backward.default
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SIZE = (3, 4, 6)  # Z, Y, X

each_run = pytest.mark.parametrize("run", RUNS)
each_run_and_mode = pytest.mark.parametrize(  # the kernels read trilinear; the reference reads all modes
    "run, mode",
    [
        pytest.param(*run.values, mode, id=f"{run.id}-{mode}", marks=run.marks)
        for run in RUNS
        for mode in (MODES if "reference" in str(run.id) else ("trilinear",))
    ],
)
each_mode = pytest.mark.parametrize("mode", MODES)
each_padding = pytest.mark.parametrize("padding", PADDING)
each_align = pytest.mark.parametrize("align", [False, True])
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def coordinates(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def sample(run: tuple[str, str], v: Tensor, p: Tensor, **options: object) -> Tensor:
    backend, device = run
    with running("voxel_sample", backend, device, dtype=v.dtype, mode=options.get("mode", "trilinear")):
        return ops.voxel_sample(v.to(device), p.to(device), **options)


def gradients(run: tuple[str, str], v: Tensor, p: Tensor, cotangent: Tensor, **options: object) -> tuple[Tensor, ...]:
    v, p = v.detach().requires_grad_(), p.detach().requires_grad_()
    out = sample(run, v, p, **options)
    return out.detach(), *torch.autograd.grad(out, (v, p), cotangent.to(out))


def oracle(v: Tensor, p: Tensor, cotangent: Tensor, mode: str, padding: str, align: bool) -> tuple[Tensor, ...]:
    """Result and gradients in float64 of inputs that were rounded to the dtype under test."""
    v, p = v.double(), p.double()
    args = (v, p, MODES[mode], PADDING[padding], align)
    return reference.voxel_sample(*args), *reference.voxel_sample_backward(cotangent.double(), *args, [True, True])


# ---- the oracle itself, against torch and against closed forms


@each_padding
@each_align
def test_oracle_is_grid_sample(padding: str, align: bool) -> None:
    v, p = volume(2, 5, *SIZE).requires_grad_(), points((2, 40), SIZE, align, out=3).requires_grad_()
    ours = reference.voxel_sample(v, p, MODES["trilinear"], PADDING[padding], align)
    theirs = F.grid_sample(v, p[:, :, None, None], "bilinear", padding, align)[..., 0, 0].transpose(1, 2)
    cotangent = torch.randn_like(ours)
    assert_close(ours, theirs)
    for got, want in zip(
        torch.autograd.grad(ours, (v, p), cotangent), torch.autograd.grad(theirs, (v, p), cotangent), strict=True
    ):
        assert_close(got, want)


@each_padding
@each_align
def test_oracle_bicubic_is_grid_sample_on_each_slice(padding: str, align: bool) -> None:
    v, p = volume(2, 5, *SIZE), points((2, 40), SIZE, align, out=3)
    for z in range(SIZE[0]):
        height = 2 * z / (SIZE[0] - 1) - 1 if align else (2 * z + 1) / SIZE[0] - 1
        at = torch.cat((p[..., :2], torch.full_like(p[..., :1], height)), -1)
        ours = reference.voxel_sample(v, at, MODES["bicubic"], PADDING[padding], align)
        theirs = F.grid_sample(v[:, :, z], p[:, :, None, :2], "bicubic", padding, align)[..., 0].transpose(1, 2)
        assert_close(ours, theirs)


@each_padding
@each_align
def test_oracle_tricubic_is_grid_sample(padding: str, align: bool) -> None:
    v, p = volume(2, 5, *SIZE), points((2, 40), SIZE, align, out=3)
    try:
        theirs = F.grid_sample(v, p[:, :, None, None], "bicubic", padding, align)[..., 0, 0].transpose(1, 2)
    except RuntimeError:
        pytest.skip("this torch has no bicubic grid_sample of volumes")
    assert_close(reference.voxel_sample(v, p, MODES["tricubic"], PADDING[padding], align), theirs)


def test_oracle_smoothstep_is_its_polynomial() -> None:
    v = torch.tensor([2.0, 5.0], dtype=torch.float64).reshape(1, 1, 1, 1, 2)
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    p = torch.stack((2 * t - 1, 0 * t, 0 * t), -1)[None]  # (1, 11, 3)
    out = reference.voxel_sample(v, p, MODES["smoothstep"], PADDING["zeros"], True)
    torch.testing.assert_close(out[0, :, 0], 2 + 3 * t * t * (3 - 2 * t))


@each_run_and_mode
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_a_constant_field_is_reproduced(run: tuple[str, str], mode: str, dtype: torch.dtype) -> None:
    p = points((2, 50), SIZE, False, out=2).to(dtype)
    taps_add_up = 4 if mode in ("trilinear", "smoothstep") else 32  # float eps; measured 2 and 9 (64 taps that cancel)
    out = sample(run, torch.full((2, 3, *SIZE), 7.0, dtype=dtype), p, mode=mode, padding_mode="border")
    torch.testing.assert_close(
        out.cpu(), torch.full((2, 50, 3), 7.0, dtype=dtype), rtol=taps_add_up * torch.finfo(dtype).eps, atol=0
    )


@each_run
@each_align
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_a_linear_field_is_reproduced(run: tuple[str, str], align: bool, dtype: torch.dtype) -> None:
    z, y, x = (torch.linspace(-1, 1, n, dtype=dtype) * (1 if align else (n - 1) / n) for n in SIZE)
    field = 3 * x[None, None, :] - 2 * y[None, :, None] + 5 * z[:, None, None] + 1
    p = points((2, 50), SIZE, align, out=0).clamp(-0.6, 0.6).to(dtype)  # between voxel centres
    out = sample(run, field.expand(2, 1, *SIZE), p, align_corners=align).cpu()
    torch.testing.assert_close(
        out[..., 0],
        p @ torch.tensor([3, -2, 5], dtype=dtype) + 1,
        rtol=0,
        atol=1e-5 if dtype == torch.float32 else 1e-14,
    )


# ---- 1 and 2: forward and backward against the oracle in float64


@each_run_and_mode
@each_padding
@each_align
@each_dtype
def test_forward_and_backward(
    run: tuple[str, str], mode: str, padding: str, align: bool, dtype: torch.dtype, poisoned_memory: None
) -> None:
    v, p = volume(2, 19, *SIZE).to(dtype), points((2, 5, 7), SIZE, align, out=3).to(coordinates(dtype))
    cotangent = torch.randn(2, 5, 7, 19, generator=generator(2)).to(dtype)
    options = {"mode": mode, "padding_mode": padding, "align_corners": align}
    found = gradients(run, v, p, cotangent, **options)
    own = gradients(("reference", "cpu"), v, p, cotangent, **options)
    assert [t.dtype for t in found] == [dtype, dtype, coordinates(dtype)]
    for got, want, like in zip(found, oracle(v, p, cotangent, mode, padding, align), own, strict=True):
        if (
            got.dtype == torch.float32 and dtype != torch.float32
        ):  # points' gradient: arithmetic of float32 from half inputs
            like = got
        assert_close(got, want, like=like)


@each_run
@each_padding
@pytest.mark.parametrize("wants", [(True, False), (False, True)], ids=["volume", "points"])
def test_one_gradient_alone(run: tuple[str, str], padding: str, wants: tuple[bool, bool]) -> None:
    v, p = volume(2, 5, *SIZE), points((2, 9), SIZE, False)
    both = gradients(run, v, p, torch.ones(2, 9, 5), padding_mode=padding)[1:]
    inputs = [t.detach().requires_grad_(want) for t, want in zip((v, p), wants, strict=True)]
    out = sample(run, *inputs, padding_mode=padding)
    (got,) = torch.autograd.grad(out.sum(), [t for t in inputs if t.requires_grad])
    assert_close(got, both[wants.index(True)])


# ---- 3: gradcheck, and gradgradcheck through the native forward and backward


@each_run_and_mode
@each_padding
@each_align
def test_gradcheck_twice(run: tuple[str, str], mode: str, padding: str, align: bool) -> None:
    v, p = volume(1, 2, 2, 3, 3).requires_grad_(), points((1, 4), (2, 3, 3), align).requires_grad_()
    f = lambda v, p: sample(run, v, p, mode=mode, padding_mode=padding, align_corners=align)
    atomics = 1e-12 if run[0] == "cuda" else 0.0
    assert torch.autograd.gradcheck(f, (v, p), fast_mode=mode == "tricubic", nondet_tol=atomics)
    assert torch.autograd.gradgradcheck(f, (v, p), fast_mode=True, nondet_tol=atomics)


@each_run
def test_gradcheck_twice_in_full(run: tuple[str, str]) -> None:
    v, p = volume(1, 1, 2, 2, 2).requires_grad_(), points((1, 2), (2, 2, 2), False).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda v, p: sample(run, v, p), (v, p), nondet_tol=1e-12)


@each_mode
@each_padding
@each_align
def test_with_grad_is_the_derivative(mode: str, padding: str, align: bool) -> None:
    v, p = volume(2, 3, *SIZE), points((2, 6), SIZE, align, out=2).requires_grad_()
    options = {"mode": mode, "padding_mode": padding, "align_corners": align}
    features, jacobian = ops.voxel_sample_with_grad(v, p, **options)
    plain = ops.voxel_sample(v, p, **options)
    assert_close(features, plain)
    assert jacobian.shape == (2, 6, 3, 3)
    for c in range(3):
        (want,) = torch.autograd.grad(plain[..., c].sum(), p, retain_graph=True)
        assert_close(jacobian[..., c, :], want)


@each_mode
@each_padding
def test_with_grad_gradcheck(mode: str, padding: str) -> None:
    v, p = volume(1, 2, 2, 3, 3).requires_grad_(), points((1, 3), (2, 3, 3), False).requires_grad_()
    raw = torch.ops.mim4d.voxel_sample_with_grad.default  # the op and the plain reference behind the public function
    for f in (
        lambda v, p: ops.voxel_sample_with_grad(v, p, mode=mode, padding_mode=padding),
        lambda v, p: raw(v, p, MODES[mode], PADDING[padding], False),
    ):
        assert torch.autograd.gradcheck(f, (v, p), fast_mode=True)


# ---- 4: edges


@each_run
@pytest.mark.parametrize("B, N, C", [(0, 4, 3), (2, 0, 3), (2, 4, 0)])
def test_empty(run: tuple[str, str], B: int, N: int, C: int) -> None:
    out, gv, gp = gradients(run, torch.ones(B, C, *SIZE), torch.zeros(B, N, 3), torch.ones(B, N, C))
    assert out.shape == (B, N, C)
    assert gv.shape == (B, C, *SIZE)
    assert gp.shape == (B, N, 3)
    assert not gv.any()
    assert not gp.any()


@each_run
@each_padding
@each_align
def test_one_voxel(run: tuple[str, str], padding: str, align: bool) -> None:
    v, p = torch.full((1, 1, 1, 1, 1), 3.0), torch.tensor([[[0.0, 0.0, 0.0], [0.9, 0.0, 0.0], [5.0, 0.0, 0.0]]])
    cotangent = torch.ones(1, 3, 1)
    for got, want in zip(
        gradients(run, v, p, cotangent, padding_mode=padding, align_corners=align),
        oracle(v, p, cotangent, "trilinear", padding, align),
        strict=True,
    ):
        assert_close(got, want)


@each_run
@pytest.mark.parametrize("C", [1, 2, 3, 4, 5, 16, 17, 33])
@pytest.mark.parametrize("N", [1, 2, 17])
def test_channels_and_points_that_fill_no_register(run: tuple[str, str], C: int, N: int, poisoned_memory: None) -> None:
    v, p = volume(2, C, *SIZE).float(), points((2, N), SIZE, False).float()
    cotangent = torch.randn(2, N, C, generator=generator(3))
    for got, want in zip(
        gradients(run, v, p, cotangent), oracle(v, p, cotangent, "trilinear", "zeros", False), strict=True
    ):
        assert_close(got, want)


@each_run
def test_voxel_centres_give_the_voxels(run: tuple[str, str]) -> None:
    v = volume(1, 3, 2, 4, 8).float()
    z, y, x = (torch.arange(n) for n in (2, 4, 8))
    p = torch.stack(
        [(2 * g + 1) / n - 1 for g, n in zip(torch.meshgrid(x, y, z, indexing="ij"), (8, 4, 2), strict=True)], -1
    )
    out = sample(run, v, p.permute(2, 1, 0, 3)[None])  # sizes of powers of two: exact positions
    assert torch.equal(out.cpu(), v.permute(0, 2, 3, 4, 1))


@each_run_and_mode
@each_padding
def test_outside(run: tuple[str, str], mode: str, padding: str) -> None:
    v = volume(1, 3, *SIZE)
    p = torch.tensor(
        [[[3.0, 0.0, 0.0], [-3.0, 4.0, 0.0], [0.0, 0.0, 50.0], [1e30, -1e30, 1e300], [torch.inf, 0, -torch.inf]]]
    )
    out, gv, gp = gradients(run, v, p.double(), torch.ones(1, 5, 3), mode=mode, padding_mode=padding)
    assert out.isfinite().all()
    assert gp.isfinite().all()
    if padding == "zeros":
        assert not out.any()
        assert not gv.any()
        assert not gp.any()
    else:
        assert_close(out[0, 3].cpu(), v[0, :, -1, 0, -1])  # the corner that is nearest
        assert_close(gv.sum(), torch.tensor(15.0, dtype=torch.float64))
        assert not gp[0, 3].any()


@each_run
@each_padding
def test_an_axis_of_one_voxel_takes_infinities(run: tuple[str, str], padding: str) -> None:
    """With align_corners every x, y, z is that voxel: d position / d coordinate is 0, and 0 * inf is NaN."""
    v = volume(1, 2, 1, 1, 1).float()
    p = torch.tensor([[[torch.inf, 0.0, -torch.inf], [0.5, 1e38, -1e38], [torch.nan, torch.inf, 0.0]]])
    out, gv, gp = gradients(run, v, p, torch.ones(1, 3, 2), padding_mode=padding, align_corners=True)
    assert torch.equal(out[0, :2].cpu(), v.flatten().expand(2, 2))
    assert out[0, 2].isnan().all()
    assert torch.equal(gv.cpu(), torch.full_like(v, 2.0))
    assert not gp.any()


@each_run_and_mode
@each_padding
def test_a_nan_point_gives_a_nan_row_and_no_gradient(run: tuple[str, str], mode: str, padding: str) -> None:
    v, p = volume(1, 5, *SIZE).float(), points((1, 6), SIZE, False, out=0).float()
    cotangent = torch.ones(1, 6, 5)
    clean = gradients(run, v, p[:, :3], cotangent[:, :3], mode=mode, padding_mode=padding)
    for axis in range(3):
        p[0, 3 + axis, axis] = torch.nan
    out, gv, gp = gradients(run, v, p, cotangent, mode=mode, padding_mode=padding)
    assert out[0, 3:].isnan().all()
    assert torch.equal(out[:, :3], clean[0])
    assert_close(gv, clean[1].double())
    assert torch.equal(gp[:, :3], clean[2])
    assert not gp[0, 3:].any()


@each_run
@pytest.mark.parametrize("odd", [torch.nan, torch.inf], ids=["nan", "inf"])
def test_what_lies_beside_a_tap_is_not_read(run: tuple[str, str], odd: float) -> None:
    """A point half outside reads one slice of voxels; the NaN and infinities in the others stay where they are."""
    v = torch.full((1, 2, 2, 2, 4), odd)
    v[..., 0] = 1.0
    p = torch.tensor([[[-1.125, 0.0, 0.0], [-2.0, 0.0, 0.0]]])  # x = -0.75: weight 0.25 on voxel 0; x = -2.5: outside
    out = sample(run, v, p).cpu()
    assert torch.equal(out, torch.tensor([[[0.25, 0.25], [0.0, 0.0]]]))


@each_run
@each_padding
def test_strides_do_not_matter(run: tuple[str, str], padding: str) -> None:
    v, p = volume(2, 5, 3, 4, 6), points((2, 4, 3), (3, 4, 6), False)
    cotangent = torch.randn(2, 4, 3, 5, generator=generator(4), dtype=torch.float64)
    want = gradients(run, v, p, cotangent, padding_mode=padding)
    wide = volume(2, 9, 3, 4, 12, seed=5)
    wide[:, 2:7, :, :, ::2] = v
    layouts = {
        "channels last": (v.contiguous(memory_format=torch.channels_last_3d), p, cotangent),
        "sliced": (wide[:, 2:7, :, :, ::2], p, cotangent),
        "transposed": (
            v.transpose(2, 4).contiguous().transpose(2, 4),
            p.transpose(1, 2).contiguous().transpose(1, 2),
            cotangent,
        ),
        "strided": (v, p.repeat_interleave(2, -1)[..., ::2], cotangent.transpose(1, 3).contiguous().transpose(1, 3)),
    }
    for name, inputs in layouts.items():
        for got, expected in zip(gradients(run, *inputs, padding_mode=padding), want, strict=True):
            assert_close(got, expected.cpu()), name


@each_run
def test_expanded_inputs(run: tuple[str, str]) -> None:
    v, p = volume(1, 3, *SIZE), points((1, 4), SIZE, False)
    one = gradients(run, v, p, torch.ones(1, 4, 3))
    two = gradients(run, v.expand(2, -1, -1, -1, -1), p.expand(2, -1, -1), torch.ones(1, 1, 1).expand(2, 4, 3))
    for got, want in zip(two, one, strict=True):
        assert_close(got[0], want[0].cpu())
        assert_close(got[1], want[0].cpu())


@each_run
def test_any_number_of_point_dimensions(run: tuple[str, str]) -> None:
    v, p = volume(2, 3, *SIZE), points((2, 8), SIZE, False)
    want = sample(run, v, p)
    assert torch.equal(sample(run, v, p.reshape(2, 2, 2, 2, 3)).reshape(2, 8, 3), want)
    assert torch.equal(sample(run, v, p[:, 0]), want[:, 0])  # (B, 3): one point an item


@pytest.mark.gpu
@pytest.mark.slow
def test_offsets_beyond_32_bits() -> None:
    """9 GB of volume: the last voxel has an offset of more than 2^31."""
    v = torch.zeros(1, 33, 65, 1024, 1024, dtype=torch.bfloat16, device="cuda").to(memory_format=torch.channels_last_3d)
    v[..., -1, -1, -1] = 1
    p = torch.tensor([[[1023 / 1024, 1023 / 1024, 64 / 65]]], device="cuda")
    assert torch.equal(sample(("cuda", "cuda"), v, p).cpu(), torch.ones(1, 1, 33, dtype=torch.bfloat16))


# ---- 5: determinism


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_same_bits_every_time(backend: str, threads: None) -> None:
    """Also for another number of threads: a volume's gradient adds in the order of the points, whoever adds."""
    v, p = volume(1, 8, 3, 16, 16).float(), points((1, 5000), (3, 16, 16), False).float()
    cotangent = torch.randn(1, 5000, 8, generator=generator(5))
    found = []
    for n in (1, 2, 2, 3):
        torch.set_num_threads(n)
        found.append(gradients((backend, "cpu"), v, p, cotangent))
    for other in found[1:] if backend == "cpu" else found[2:3]:
        for got, want in zip(other, found[0] if backend == "cpu" else found[1], strict=True):
            assert torch.equal(got, want)


@pytest.mark.gpu
def test_deterministic_algorithms_on_a_gpu(poisoned_memory: None) -> None:
    reason = backends.reason_against(
        "voxel_sample", "cuda", torch.device("cuda"), dtype=torch.float32, mode="trilinear"
    )
    assert reason is not None
    assert "deterministic" in reason
    v, p = volume(1, 8, 3, 16, 16).float().cuda().requires_grad_(), points((1, 5000), (3, 16, 16), False).float().cuda()
    first, second = (torch.autograd.grad(ops.voxel_sample(v, p).square().sum(), v)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_every_instruction_set() -> None:
    """Each level that this processor has, in a process of its own, against the oracle and through both layouts."""
    if isinstance(_library.extension(), str) or "ops_cpu" not in _library.loaded:
        pytest.skip("the native library is not built")
    program = """
import json, torch
from mim4d import _library, ops
from mim4d.reference import voxel_sample as reference
module, g, worst = _library.extension(), torch.Generator().manual_seed(0), {}
for dtype in (torch.float32, torch.float64):
    for C in (1, 3, 16, 37):
        for padding, number in (("zeros", 0), ("border", 1)):
            v = torch.randn(2, C, 3, 5, 7, generator=g).to(dtype).requires_grad_()
            p = (torch.rand(2, 41, 3, generator=g) * 2.6 - 1.3).to(dtype).requires_grad_()
            out = ops.voxel_sample(v, p, padding_mode=padding)
            grads = torch.autograd.grad(out.square().sum(), (v, p))
            v64, p64 = v.detach().double().requires_grad_(), p.detach().double().requires_grad_()
            want = reference.voxel_sample(v64, p64, 0, number, False)
            wants = torch.autograd.grad(want.square().sum(), (v64, p64))
            for a, b in zip((out, *grads), (want, *wants)):
                error = float((a - b).abs().max() / b.abs().max())
                worst[str(dtype)] = max(worst.get(str(dtype), 0.0), error)
print(json.dumps([module.cpu_isa(), worst]))
"""
    ran = []
    for level in ("base", "avx2", "avx512"):
        done = python(program, MIM4D_CPU_ISA=level, MIM4D_BACKEND="cpu")
        assert done.returncode == 0, done.stderr
        isa, worst = json.loads(done.stdout)
        ran.append(isa)
        assert worst["torch.float32"] < 4e-6, (isa, worst)  # measured 6e-7
        assert worst["torch.float64"] < 1e-13, (isa, worst)  # measured 2e-15
    assert ran[0] == "base"


# ---- 6: contract


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True), (False, False)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_opcheck(needs: tuple[bool, bool], dtype: torch.dtype) -> None:
    v, p = volume(2, 3, *SIZE).to(dtype), points((2, 4), SIZE, False).to(coordinates(dtype))
    v.requires_grad_(needs[0]), p.requires_grad_(needs[1])
    torch.library.opcheck(OP, (v, p, 0, 1, False))
    torch.library.opcheck(torch.ops.mim4d.voxel_sample_with_grad.default, (v, p, 0, 1, False))


@pytest.mark.parametrize("mask", [[True, True], [True, False], [False, True], [False, False]], ids=str)
def test_opcheck_of_the_backward_ops(mask: list[bool]) -> None:
    v, p, grad = volume(2, 3, *SIZE), points((2, 4), SIZE, False), torch.ones(2, 4, 3, dtype=torch.float64)
    torch.library.opcheck(BACKWARD, (grad, v, p, 0, 0, False, mask))
    grad_jacobian = torch.ones(2, 4, 3, 3, dtype=torch.float64)
    with_grad = torch.ops.mim4d.voxel_sample_with_grad_backward.default
    torch.library.opcheck(with_grad, (grad, grad_jacobian, v, p, 0, 0, False, mask))
    double = torch.ops.mim4d.voxel_sample_double_backward.default
    torch.library.opcheck(double, (torch.ones_like(v), torch.ones_like(p), grad, v, p, 0, 0, False, [True, *mask]))
    torch.library.opcheck(double, (None, torch.ones_like(p), grad, v, p, 0, 0, False, [True, *mask]))


def test_third_derivatives_are_refused_in_words() -> None:
    v, p = volume(1, 1, 2, 2, 2).requires_grad_(), points((1, 1), (2, 2, 2), False).requires_grad_()
    if backends.choose("voxel_sample", device=v.device, dtype=v.dtype, mode="trilinear") == "reference":
        pytest.skip("the reference has them")
    (first,) = torch.autograd.grad(ops.voxel_sample(v, p).square().sum(), p, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), p, create_graph=True)
    with pytest.raises(RuntimeError, match=r"voxel_sample_double_backward has no derivative.*use_backend"):
        torch.autograd.grad(second.sum(), v)


def test_the_gradient_of_a_volume_lies_channels_last() -> None:
    for backend in ("reference", "cpu"):
        for v in (volume(2, 3, *SIZE), volume(2, 3, *SIZE).contiguous(memory_format=torch.channels_last_3d)):
            with running("voxel_sample", backend, "cpu", dtype=v.dtype, mode="trilinear"):
                gv, _ = BACKWARD(
                    torch.ones(2, 4, 3, dtype=v.dtype), v, points((2, 4), SIZE, False), 0, 0, False, [True, False]
                )
            assert gv.is_contiguous(memory_format=torch.channels_last_3d)


def test_autocast_widens_points_and_keeps_the_volume() -> None:
    v, p = volume(1, 4, *SIZE).bfloat16(), points((1, 6), SIZE, False).bfloat16()
    for backend in ("reference", "cpu"):
        with (
            running("voxel_sample", backend, "cpu", dtype=v.dtype, mode="trilinear"),
            torch.autocast("cpu", torch.bfloat16),
        ):
            out = ops.voxel_sample(v, p)
            features, _ = ops.voxel_sample_with_grad(v, p) if backend == "reference" else (out, None)
        assert out.dtype == features.dtype == torch.bfloat16
        want = reference.voxel_sample(v.double(), p.double(), 0, 0, False)
        assert_close(out, want, like=reference.voxel_sample(v, p.float(), 0, 0, False))


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"volume": torch.zeros(2, 3, 4, 5)}, ValueError, r"volume has shape \(2, 3, 4, 5\), wanted \(B, C, Z, Y, X\)"),
        ({"volume": torch.zeros(2, 3, 4, 5, 0)}, ValueError, "at least one voxel"),
        ({"volume": torch.zeros(2, 3, *SIZE, dtype=torch.int64)}, TypeError, "volume is torch.int64"),
        ({"volume": [1.0]}, TypeError, "volume is list, wanted a Tensor"),
        ({"points": None}, TypeError, "points is NoneType, wanted a Tensor"),
        ({"points": torch.zeros(2, 7, 2)}, ValueError, r"points has shape \(2, 7, 2\), wanted \(2, ..., 3\)"),
        ({"points": torch.zeros(1, 7, 3)}, ValueError, r"points has shape \(1, 7, 3\), wanted \(2, ..., 3\)"),
        (
            {"points": torch.zeros(2, 7, 3, dtype=torch.float64)},
            TypeError,
            "points is torch.float64, wanted torch.float32",
        ),
        ({"points": torch.zeros(2, 7, 3, dtype=torch.bfloat16)}, TypeError, "points is torch.bfloat16"),
        ({"points": torch.zeros(2, 7, 3, device="meta")}, ValueError, "points is on meta, wanted cpu"),
        ({"mode": "cubic"}, ValueError, "mode is 'cubic', wanted one of trilinear, smoothstep, bicubic, tricubic"),
        ({"padding_mode": "reflection"}, ValueError, "padding_mode is 'reflection', wanted one of zeros, border"),
    ],
)
@pytest.mark.parametrize("name", ["voxel_sample", "voxel_sample_with_grad"])
def test_errors_name_op_argument_got_and_wanted(name: str, change: dict, error: type[Exception], words: str) -> None:
    good = {"volume": torch.zeros(2, 3, *SIZE), "points": torch.zeros(2, 7, 3)}
    with pytest.raises(error, match=rf"mim4d\.ops\.{name}: .*{words}"):
        getattr(ops, name)(**{**good, **change})


def test_the_native_op_checks_for_itself() -> None:
    """Behind the public function stands a second wall: the bare op never crashes."""
    if "ops_cpu" not in _library.loaded:
        pytest.skip("the native library is not built")
    v, p = torch.zeros(2, 3, *SIZE), torch.zeros(2, 7, 3)
    for args, words in [
        ((v[0], p, 0, 0, False), "volume has 4 dimensions"),
        ((v, p[:1], 0, 0, False), "points has the wrong shape"),
        ((v, p.double(), 0, 0, False), "points is Double, wanted Float"),
        ((v, p, 2, 0, False), "mode 2"),
        ((v, p, 0, 7, False), "padding_mode 7"),
    ]:
        with pytest.raises(RuntimeError, match=words):
            OP(*args)
    with pytest.raises(RuntimeError, match="grad has not the shape of the result"):
        BACKWARD(torch.zeros(2, 7, 4), v, p, 0, 0, False, [True, True])


def test_forward_mode_gives_the_tangents_of_the_reference() -> None:
    """A native op would give zeros in silence; the tangent is that of a central difference."""
    v, p = volume(1, 3, *SIZE), points((1, 5), SIZE, False)
    step = torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(3))
    sample = lambda p: ops.voxel_sample(v, p, mode="tricubic")
    _, got = torch.func.jvp(lambda p: ops.voxel_sample(v, p), (p,), (step,))
    with ops.use_backend("reference"):
        _, want = torch.func.jvp(lambda p: ops.voxel_sample(v, p), (p,), (step,))
    assert got.abs().max() > 0.1
    torch.testing.assert_close(got, want)
    _, smooth = torch.func.jvp(sample, (p,), (step,))
    h = 1e-5
    torch.testing.assert_close(smooth, (sample(p + h * step) - sample(p - h * step)) / (2 * h), rtol=1e-6, atol=1e-6)
