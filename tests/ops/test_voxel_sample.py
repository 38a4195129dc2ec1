"""``voxel_sample``: the reference against stock torch and closed forms, and what is true of the op alone.

``test_contract.py`` has the rest.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from helpers import contract
from helpers.cases import RUNS, generator, points, running, volume
from helpers.infos.voxel_sample import INFO
from helpers.infos.voxel_sample import WITH_GRAD as WITH_GRAD_INFO
from helpers.op_info import OpInfo
from helpers.tolerances import assert_close, errors
from torch import Tensor

from mim4d import _library, backends, ops
from mim4d.ops._modes import MODES, PADDING
from mim4d.reference import voxel_sample as reference

OP = torch.ops.mim4d.voxel_sample.default
BACKWARD = torch.ops.mim4d.voxel_sample_backward.default
DOUBLE = torch.ops.mim4d.voxel_sample_double_backward.default
WITH_GRAD = torch.ops.mim4d.voxel_sample_with_grad.default
WITH_GRAD_BACKWARD = torch.ops.mim4d.voxel_sample_with_grad_backward.default
SIZE = (3, 4, 6)  # Z, Y, X

each_run = pytest.mark.parametrize("run", RUNS)
each_run_and_mode = pytest.mark.parametrize(
    "run, mode",
    [pytest.param(*run.values, mode, id=f"{run.id}-{mode}", marks=run.marks) for run in RUNS for mode in MODES],
)
each_native = pytest.mark.parametrize("run", [run for run in RUNS if run.values[0][0] in ("cpu", "simt", "cuda")])
each_mode = pytest.mark.parametrize("mode", MODES)
each_padding = pytest.mark.parametrize("padding", PADDING)
each_align = pytest.mark.parametrize("align", [False, True])


def sample(run: tuple[str, str], v: Tensor, p: Tensor, **options: object) -> Tensor:
    backend, device = run
    with running("voxel_sample", backend, device, dtype=v.dtype, mode=options.get("mode", "trilinear")):
        return ops.voxel_sample(v.to(device), p.to(device), **options)


def gradients(run: tuple[str, str], v: Tensor, p: Tensor, cotangent: Tensor, **options: object) -> tuple[Tensor, ...]:
    v, p = v.detach().requires_grad_(), p.detach().requires_grad_()
    out = sample(run, v, p, **options)
    return out.detach(), *torch.autograd.grad(out, (v, p), cotangent.to(out))


# ---- the reference against torch, and closed forms


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


# ---- derivatives beyond what the table asks for, and the error beside that of torch


@each_native
@each_mode
@each_padding
@each_align
def test_each_derivative_op_for_each_cotangent(run: tuple[str, str], mode: str, padding: str, align: bool) -> None:
    """The dispatcher's ops against the reference in float64, in both dtypes: with all cotangents and with one alone,
    with all results wanted and with one alone; a NaN point and points far outside among them."""
    g = generator(7)
    randn = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    v, p = volume(2, 19, *SIZE), points((2, 21), SIZE, align, out=3)
    p[0, 3] = torch.tensor([1e30, -torch.inf, torch.inf])
    p[1, 4, 1] = torch.nan
    grad, jacobian, along_v, along_p = randn(2, 21, 19), randn(2, 21, 19, 3), randn(*v.shape), randn(*p.shape)
    options = (MODES[mode], PADDING[padding], align)
    calls = [(WITH_GRAD, reference.voxel_sample_with_grad, (v, p), [])]
    for cotangents in ((grad, jacobian), (None, jacobian), (grad, None)):
        for mask in ([True, True], [True, False], [False, True]):
            args = (*cotangents, v, p)
            calls.append((WITH_GRAD_BACKWARD, reference.voxel_sample_with_grad_backward, args, [mask]))
    for cotangents in ((along_v, along_p), (None, along_p), (along_v, None), (None, None)):
        for mask in ([True, True, True], [True, False, False], [False, True, False], [False, False, True]):
            args = (*cotangents, grad, v, p)
            calls.append((DOUBLE, reference.voxel_sample_double_backward, args, [mask]))
    # float32: measured 2.3e-6 (second derivatives: differences of voxels times half the size of the grid, twice)
    backend, device = run
    for dtype, bound in ((torch.float64, 1e-13), (torch.float32, 8e-6)):
        for op, specification, args, mask in calls:
            rounded = [None if t is None else t.to(device, dtype) for t in args]
            wide = [None if t is None else t.cpu().double() for t in rounded]
            wants = specification(*wide, *options, *mask)
            with running("voxel_sample_with_grad", backend, device, dtype=dtype, mode=mode):
                results = op(*rounded, *options, *mask)
            for got, want in zip(results, wants, strict=True):
                found = errors(got.cpu(), want)
                assert found.element <= bound, (op, mask, dtype, found)


@pytest.mark.parametrize("mode, native", [("trilinear", "bilinear"), ("tricubic", "bicubic")])
@each_padding
def test_float32_is_as_exact_as_grid_sample(mode: str, native: str, padding: str) -> None:
    """At most twice the error of torch's own kernel on the same inputs; measured 0.7 to 1.13 of it."""
    v, p = volume(1, 32, 5, 24, 24).float(), points((1, 3000), (5, 24, 24), False, out=2).float()
    cotangent = torch.randn(1, 3000, 32, generator=generator(8))
    args = (v.double(), p.double(), MODES[mode], PADDING[padding], False)
    wants = (
        reference.voxel_sample(*args),
        *reference.voxel_sample_backward(cotangent.double(), *args, [True, True]),
    )
    ours = gradients(("cpu", "cpu"), v, p, cotangent, mode=mode, padding_mode=padding)
    v, p = v.requires_grad_(), p.requires_grad_()
    try:
        out = F.grid_sample(v, p[:, :, None, None], native, padding, False)[..., 0, 0].transpose(1, 2)
    except RuntimeError:
        pytest.skip("this torch has no bicubic grid_sample of volumes")
    theirs = (out.detach(), *torch.autograd.grad(out, (v, p), cotangent))
    for own, their, want in zip(ours, theirs, wants, strict=True):
        mine, rival = errors(own, want), errors(their, want)
        assert mine.element <= 2 * rival.element, (mine, rival)
        assert mine.l2 <= 2 * rival.l2, (mine, rival)


# ---- edges


@each_run
@pytest.mark.parametrize("C", [1, 2, 3, 4, 5, 16, 17, 33])
def test_channels_and_points_that_fill_no_register(run: tuple[str, str], C: int) -> None:
    contract.check_poison(INFO, run, torch.float32, [INFO.sample(f"{N} points", {"C": C, "N": N}) for N in (1, 2, 17)])


@each_run
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_results_are_rounded_once(run: tuple[str, str], dtype: torch.dtype) -> None:
    """Sums are float32: over many numbers, the error is that of the exact results in half. Measured 1.00002 of it; with
    sums in half 1.86 and 2.03, which the bounds of single elements allow."""
    v, p = volume(1, 8, 3, 16, 16).to(dtype), points((1, 500), (3, 16, 16), False).float()
    exact = sample(("reference", "cpu"), v.double(), p.double())
    once = exact.to(dtype).double()
    assert (sample(run, v, p).double().cpu() - exact).norm() <= 1.02 * (once - exact).norm()


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
@pytest.mark.parametrize("mode, axis", [("trilinear", 0), ("trilinear", 1), ("smoothstep", 2), ("bicubic", 2)])
def test_infinite_voxels_pull_at_no_clamped_axis(run: tuple[str, str], mode: str, axis: int) -> None:
    """Of a linear axis that ``border`` clamps: 0, in all derivatives, and not 0 times what the voxels are."""
    v, p = torch.full((1, 3, *SIZE), torch.inf), torch.full((1, 5, 3), 0.1)
    p[..., axis] = torch.tensor([1.5, -1.5, 1.0, -torch.inf, 0.1])  # the last one is not clamped
    cotangent = torch.ones(1, 5, 3)
    _, _, gp = gradients(run, v, p, cotangent, mode=mode, padding_mode="border")
    backend, device = run
    options = (v.to(device), p.to(device), MODES[mode], PADDING["border"], False)
    with running("voxel_sample_with_grad", backend, device, dtype=v.dtype, mode=mode):
        columns = cotangent.unsqueeze(-1).expand(1, 5, 3, 3).to(device)
        _, bent = WITH_GRAD_BACKWARD(cotangent.to(device), columns, *options, [False, True])
        _, _, double = DOUBLE(
            options[0], torch.ones_like(options[1]), cotangent.to(device), *options, [False, False, True]
        )
    for found in (gp, bent, double):
        assert not found[0, :4, axis].any()
        assert not found[0, 4].isfinite().any()


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


@pytest.mark.gpu
@pytest.mark.slow
def test_offsets_beyond_32_bits() -> None:
    """9 GB of volume: the last voxel has an offset of more than 2^31."""
    v = torch.zeros(1, 33, 65, 1024, 1024, dtype=torch.bfloat16, device="cuda").to(memory_format=torch.channels_last_3d)
    v[..., -1, -1, -1] = 1
    p = torch.tensor([[[1023 / 1024, 1023 / 1024, 64 / 65]]], device="cuda")
    assert torch.equal(sample(("cuda", "cuda"), v, p).cpu(), torch.ones(1, 1, 33, dtype=torch.bfloat16))


# ---- determinism


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


def test_only_kernels_that_add_by_atomics_stand_aside() -> None:
    can_run = backends._predicates["voxel_sample"]
    torch.use_deterministic_algorithms(True)
    try:
        assert "in no fixed order" in str(can_run["triton"](dtype=torch.float32, mode="trilinear"))
        assert can_run["cuda"](dtype=torch.float32, mode="trilinear") is None
    finally:
        torch.use_deterministic_algorithms(False)
    assert can_run["triton"](dtype=torch.float32, mode="trilinear") is None


@pytest.mark.parametrize("strict", [False, True], ids=["as it comes", "deterministic"])
def test_the_order_of_threads_changes_no_bit(monkeypatch: pytest.MonkeyPatch, strict: bool) -> None:
    """Of the CUDA kernels: in cubic modes always, in linear ones where torch.use_deterministic_algorithms asks."""
    v, p = volume(1, 8, 3, 6, 6).float(), points((1, 300), (3, 6, 6), False).float()
    grad, along = torch.randn(1, 300, 8, generator=generator(5)), torch.randn(1, 300, 3, generator=generator(6))
    jacobian = torch.randn(1, 300, 8, 3, generator=generator(7))

    def found(mode: str) -> list[Tensor]:
        options = (v, p, MODES[mode], PADDING["border"], False)
        with running("voxel_sample", "simt", "cpu", dtype=v.dtype, mode=mode):
            return [
                *BACKWARD(grad, *options, [True, True]),
                *WITH_GRAD_BACKWARD(grad, jacobian, *options, [True, True]),
                *DOUBLE(v, along, grad, *options, [True, True, True]),
            ]

    torch.use_deterministic_algorithms(strict)
    try:
        for mode in MODES:
            orders = []
            for order in ("fwd", "rev", "rand:3"):
                monkeypatch.setenv("SIMT_ORDER", order)
                orders.append(found(mode))
            same = all(torch.equal(a, b) for other in orders[1:] for a, b in zip(orders[0], other, strict=True))
            assert same == (strict or mode in ("bicubic", "tricubic")), mode  # atomics do show
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
@each_mode
def test_deterministic_algorithms_on_a_gpu(mode: str) -> None:
    v, p = volume(1, 8, 3, 16, 16).float().cuda().requires_grad_(), points((1, 5000), (3, 16, 16), False).float().cuda()
    torch.use_deterministic_algorithms(True)
    try:
        with ops.use_backend("cuda"):
            out = [ops.voxel_sample(v, p, mode=mode) for _ in range(2)]
            first, second = (torch.autograd.grad(o.square().sum(), v)[0] for o in out)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(first, second)


# ---- its kernels and its derivatives


def test_the_gradient_of_a_volume_lies_channels_last() -> None:
    for backend in ("reference", "cpu"):
        for v in (volume(2, 3, *SIZE), volume(2, 3, *SIZE).contiguous(memory_format=torch.channels_last_3d)):
            with running("voxel_sample", backend, "cpu", dtype=v.dtype, mode="trilinear"):
                gv, _ = BACKWARD(
                    torch.ones(2, 4, 3, dtype=v.dtype), v, points((2, 4), SIZE, False), 0, 0, False, [True, False]
                )
            assert gv.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("info", [INFO, WITH_GRAD_INFO], ids=lambda info: info.op)
def test_many_wrong_and_odd_calls_are_in_the_table(info: OpInfo) -> None:
    """Dtypes, devices, ranks, sizes, names, NaN and far points, empty dimensions: test_contract.py makes them all."""
    wrong, odd, edges = ([call.name for call in calls] for calls in (info.wrong(), info.odd(), info.degenerate()))
    assert len({*wrong, *odd, *edges}) == len(wrong) + len(odd) + len(edges)
    assert len(wrong) >= 30
    assert len(wrong) + len(odd) + len(edges) >= 50


def test_the_native_op_checks_for_itself() -> None:
    """Behind the public function stands a second wall: the bare op never crashes."""
    if "ops_cpu" not in _library.loaded:
        pytest.skip("the native library is not built")
    v, p = torch.zeros(2, 3, *SIZE), torch.zeros(2, 7, 3)
    for args, words in [
        ((v[0], p, 0, 0, False), "volume has 4 dimensions"),
        ((v, p[:1], 0, 0, False), "points has the wrong shape"),
        ((v, p.double(), 0, 0, False), "points is Double, wanted Float"),
        ((v, p, 4, 0, False), r"mode 4, wanted 0 \(trilinear\) to 3 \(tricubic\)"),
        ((v, p, 0, 7, False), "padding_mode 7"),
    ]:
        with pytest.raises(RuntimeError, match=words):
            OP(*args)
    grad = torch.zeros(2, 7, 3)
    with pytest.raises(RuntimeError, match="grad has not the shape of the result"):
        BACKWARD(torch.zeros(2, 7, 4), v, p, 0, 0, False, [True, True])
    both = (v, p, grad, v, p, 0, 0, False, [True, True, True])
    for cotangents, words in [
        ((v[:, :2], p), "grad_grad_volume has not the shape of volume"),
        ((v, p[:, :2]), "grad_grad_points has not the shape of points"),
        ((v, p.double()), "grad_grad_points is Double, wanted Float"),
    ]:
        with pytest.raises(RuntimeError, match=words):
            DOUBLE(*cotangents, *both[2:])
    for cotangents, words in [
        ((grad[..., :2], None), "grad_features has not the shape of the features"),
        ((None, grad), "grad_jacobian has not the shape of the Jacobian"),
    ]:
        with pytest.raises(RuntimeError, match=words):
            WITH_GRAD_BACKWARD(*cotangents, v, p, 0, 0, False, [True, True])


def test_a_cotangent_that_is_none_counts_as_zero() -> None:
    """Of both gradients perhaps one alone is differentiated again."""
    v, p, grad = volume(2, 3, *SIZE), points((2, 4), SIZE, False), torch.ones(2, 4, 3, dtype=torch.float64)
    double = torch.ops.mim4d.voxel_sample_double_backward.default
    for name, ggv, ggp in (("points", None, torch.ones_like(p)), ("volume", torch.ones_like(v), None)):
        zeros = [torch.zeros_like(x) if g is None else g for x, g in ((v, ggv), (p, ggp))]
        for mask in ([True, True, True], [True, False, False], [False, True, False], [False, False, True]):
            torch.library.opcheck(double, (ggv, ggp, grad, v, p, 0, 0, False, mask), test_utils="test_faketensor")
            found, want = (double(*g, grad, v, p, 0, 0, False, mask) for g in ((ggv, ggp), zeros))
            for a, b in zip(found, want, strict=True):
                assert_close(a, b), name


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
