"""Numerical models of the GPU matmul kernels, in torch on the CPU."""
