"""Energy and gradient of a ``painn``, as kernels for inference."""
