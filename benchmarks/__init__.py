"""Benchmarks of the ops: ``python -m benchmarks.run``. No time is printed for a result that is wrong.

:mod:`benchmarks.ops` holds one entry per op: inputs named after the workload, an oracle, rivals.
:mod:`benchmarks.verify` is the gate that every rival passes before and after it is timed by :mod:`benchmarks.timing`.
"""
