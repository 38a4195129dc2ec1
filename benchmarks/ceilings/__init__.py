"""What a GPU gives at best: bandwidths, atomics, arithmetic, launches, by kernels of our own."""
