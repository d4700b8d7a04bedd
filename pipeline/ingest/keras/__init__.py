"""Keras models of every age and of either Keras."""
