"""Triton kernels, one fused operation per file; installed as `engine.kernels`."""
