"""Kernels on the channels of an image: colour, tone, histograms, filters. They know nothing of stages."""
