"""Decompositions of convolution kernels: tensors in, frozen records out."""
