"""Benchmarks of the ops: ``python -m benchmarks.run``. No time is printed for a result that is wrong."""
