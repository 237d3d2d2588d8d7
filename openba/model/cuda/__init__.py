"""CUDA implementation of the model: plain formulas, and flash attention over packed rows."""
