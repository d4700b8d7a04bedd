"""Failures of models: they can't be read, converted or run."""

from edgebuild.calibration.errors import Failure


class ModelError(Failure):
    """A model or flatbuffer that can't be read, converted or run."""
