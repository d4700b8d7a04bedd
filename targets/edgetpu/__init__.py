"""Coral's Edge TPU: rules, memory, and its compiler where that is here."""
