"""The registry: an :class:`~benchmarks.case.Entry` per op, in the module of the op's stem. A new op is one more row."""

from benchmarks.case import Entry
from benchmarks.ops import ms_deform_attn, sdf_march, voxel_pool, voxel_pull, voxel_sample

ENTRIES: dict[str, Entry] = {
    entry.op: entry
    for entry in (
        *voxel_sample.ENTRIES,
        *sdf_march.ENTRIES,
        *ms_deform_attn.ENTRIES,
        *voxel_pool.ENTRIES,
        *voxel_pull.ENTRIES,
    )
}
