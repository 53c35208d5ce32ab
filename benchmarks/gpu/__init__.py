"""Triton kernels on a GPU: correctness first, then times against named baselines. See benchmarks/README.md.

    python -m benchmarks.gpu [PART ...] [--list] [--seconds N] [--out DIR]

Needs nothing but torch, triton and numpy, and for the part `step` what gptcore needs. Everything that touches the GPU
runs in a process of its own (`worker`), so that a kernel that crashes or hangs costs its own points only; the process
that plans and reports never imports torch.
"""
