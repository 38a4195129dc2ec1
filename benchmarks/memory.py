"""Peak memory of one call, above what stood before it.

CUDA: ``max_memory_allocated``. CPU: every allocation and release that torch's allocator reports to the profiler, added
up in order; that covers C++ ops and compiled graphs. Rivals that compute in numpy are followed by ``tracemalloc``,
which numpy reports to. Scratch that a library takes past both (a buffer on a thread's stack, say) is not seen.
"""

from __future__ import annotations

import os
import tracemalloc

import torch

from benchmarks.case import Run

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own log would stand between the rows of the table


def peak(run: Run) -> int:
    """Bytes."""
    if run.device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run.once()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if run.rival.numpy:
        tracemalloc.start()
        try:
            run.once()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True, acc_events=True) as profile:
        run.once()
    results = profile.profiler.kineto_results if profile.profiler else None
    assert results is not None
    events = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
    now = top = 0
    for _, size in sorted(events, key=lambda event: event[0]):  # stable: equal times keep the order of the report
        now += size
        top = max(top, now)
    return top
