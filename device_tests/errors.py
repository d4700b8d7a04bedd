"""Failures of devices."""

from edgebuild.calibration.errors import Failure


class DeviceError(Failure):
    """A device that can't be reached, or a measurement that can't be made there."""


class ModelRunError(DeviceError):
    """A device that is there, and can't run this model: it crashes, is too slow, or is refused by the runtime."""
