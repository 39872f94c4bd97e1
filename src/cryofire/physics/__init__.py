"""Image formation: projection, contrast transfer, shifts and noise, as differentiable functions and fast kernels."""
