"""The mathematics and the two networks: tensors and callables in, tensors out."""
