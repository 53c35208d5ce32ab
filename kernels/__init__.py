"""Kernels: fused forward and backward passes. Imports torch (and triton on a GPU) only, nothing of this project."""
