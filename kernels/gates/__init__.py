"""What the gate compiles of every family of kernels, and what each point must hold: one module a family."""
