"""Failures of devices."""

from edgebuild.calibration.errors import Failure


class DeviceError(Failure):
    """A device that can't be reached, or a measurement that can't be made there."""
