"""Groups `gpu-ready` (what a CPU can prove of the GPU path) and `gpu` (what a GPU measures)."""
