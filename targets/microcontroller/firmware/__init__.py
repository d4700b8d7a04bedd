"""The folder that a firmware project includes: the model in C++, its settings, test vectors, and how to build them."""

from edgebuild.targets.microcontroller.firmware.package import files

__all__ = ["files"]
