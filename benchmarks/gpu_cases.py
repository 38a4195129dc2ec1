"""Programs that ``benchmarks.gpu`` runs in processes of their own: ``python -m benchmarks.gpu_cases PROGRAM``.

``facts`` says in JSON what there is; ``check`` asks whether the built library serves this GPU; ``cases`` calls every op
that has a kernel on small inputs, forward and backward, for compute-sanitizer to watch; ``ops`` lists what there are
benchmarks of; ``note`` appends rows from the standard input to a file of results. The inputs of ``check`` and ``cases``
are those of the tests' table of ops (``tests/helpers/infos``): a new op needs no line here.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from helpers.op_info import OpInfo

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))  # for helpers, imported where needed

# What parts of the rig can use, by the name of the module; none of it is fetched.
EXTRAS = {
    "hypothesis": "fuzz tests",
    "triton": "Triton kernels",
    "timm": "the step, tests of the models",
    "yaml": "the step's presets (pyyaml)",
    "nuscenes": "tests of nuScenes data (nuscenes-devkit)",
    "accelerate": "tests of the engine",
    "matplotlib": "plots of the benchmarks",
}


def facts() -> dict[str, Any]:
    """Versions, the GPU, absent extras. ``device`` is None without a GPU."""
    found: dict[str, Any] = {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "device": None,
        "absent": {name: use for name, use in EXTRAS.items() if importlib.util.find_spec(name) is None},
    }
    if torch.cuda.is_available():
        from benchmarks import record

        device = torch.cuda.get_device_properties(0)
        found |= {"device": device.name, "capability": [device.major, device.minor], "memory": device.total_memory}
        found["results"] = str(record.results_file("cuda"))
    return found


def table() -> tuple[OpInfo, ...]:
    """The tests' table of ops."""
    from helpers.infos import OPS

    return OPS


def with_kernel(backend: str) -> list[OpInfo]:
    """The rows of the ops for which a kernel of this backend is written."""
    from mim4d import backends

    return [info for info in table() if backend in backends._predicates.get(info.op, {})]


def calls(info: OpInfo, backend: str, device: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and arguments of small calls that this backend can run, in every dtype that it takes."""
    from mim4d import backends

    sizes = {**info.tiny, **info.cases, **info.edges}
    for name, size in sizes.items():
        sample = info.sample(name, size)
        for dtype in info.dtypes:
            arguments = info.cast(sample, dtype, device)
            if backends.reason_against(info.op, backend, torch.device(device), **info.meta(arguments)) is None:
                yield f"{name}, {dtype}".replace("torch.", ""), arguments


def run_calls(backend: str, device: str) -> dict[str, int]:
    """Every such call, forward and backward; how many there were of each op."""
    from helpers.op_info import tensors

    from mim4d import ops

    done: dict[str, int] = {}
    for info in with_kernel(backend):
        done[info.op] = 0
        for _, arguments in calls(info, backend, device):
            leaves = [leaf for leaf in info.leaves(arguments) if leaf.is_floating_point()]
            for leaf in leaves:
                leaf.requires_grad_()
            with ops.use_backend(backend):
                results = [t for t in tensors(info.function(**arguments)) if t.requires_grad]
                if results:
                    torch.autograd.grad(results, leaves, [torch.ones_like(t) for t in results], allow_unused=True)
            done[info.op] += 1
    if device == "cuda":
        torch.cuda.synchronize()
    return done


def faults_of_answers(backend: str, device: str) -> list[str]:
    """For each op with a kernel, one float32 call against the float64 oracle of the tests: what is wrong."""
    from helpers.op_info import tensors
    from helpers.tolerances import assert_close

    from mim4d import ops

    faults = []
    for info in with_kernel(backend):
        sample = info.sample("first", {})
        with ops.use_backend(backend):
            try:
                got = tensors(info.function(**info.cast(sample, torch.float32, device)))
                oracle = tensors(info.oracle(**info.cast(sample, torch.float64)))
                for a, b in zip(got, oracle, strict=True):
                    assert_close(a.cpu(), b.detach())
            except Exception as error:  # whatever a library that does not fit raises
                faults.append(f"{info.op}: {type(error).__name__}: {error}")
    return faults


def check() -> list[str]:
    """Whether the CUDA library is there and serves this GPU: prints what it finds, returns what is wrong."""
    from mim4d import _library, backends
    from mim4d import ops as ops  # the ops register themselves

    print(backends.report())
    reason = _library.failures.get("ops_cuda")
    if reason is not None:
        return [f"ops_cuda: {reason}"]
    faults = [
        f"{info.op}: {against}"
        for info in with_kernel("cuda")
        if (against := _library.absent.get((info.op, "cuda")) or backends._unserved_device(None))
    ]
    try:
        kernels = _library.kernel_attributes()
    except RuntimeError as error:  # of the driver: no code for this GPU, a driver older than the runtime
        return [*faults, str(error)]
    for kernel in kernels:
        print(
            "{name}: {registers} registers, {shared_bytes} bytes shared, {local_bytes} local, "
            "{blocks_per_sm} blocks of {threads}, sm_{arch}".format(**kernel)
        )
    if not kernels:
        faults.append("the library lists no kernel")
    return faults or faults_of_answers("cuda", "cuda")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", choices=("facts", "check", "cases", "ops", "note"))
    parser.add_argument("--backend", default="cuda", choices=("cuda", "cpu"), help="whose kernels: cpu to try this out")
    parser.add_argument("--json", type=Path, help="file that note appends to")
    args = parser.parse_args(arguments)
    if args.program == "facts":
        print(json.dumps(facts()))
        return 0
    if args.program == "ops":
        from benchmarks.ops import ENTRIES

        print(json.dumps(list(ENTRIES)))
        return 0
    if args.program == "note":
        from benchmarks import record

        rows = [{**record.environment(args.backend), **json.loads(line)} for line in sys.stdin]
        record.append(args.json, rows)
        return 0
    if args.program == "check":
        faults = check()
        for fault in faults:
            print(f"WRONG: {fault}")
        return 1 if faults else 0
    from mim4d import ops as ops

    done = run_calls(args.backend, args.backend)
    print("calls: " + json.dumps(done))
    return 0 if done and all(done.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
