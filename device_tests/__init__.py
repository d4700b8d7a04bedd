"""Latency on a device: a script that is pushed there, transports that carry it, and the method that judges."""
