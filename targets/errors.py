"""Failures of targets: unknown ones, models they can't run, tools that are missing."""

from edgebuild.calibration.errors import Failure


class UnknownTargetError(Failure):
    """A target or profile name that does not exist."""


class ToolMissingError(Failure):
    """An external program or optional package that this step needs is not installed."""


class PlacementError(Failure):
    """A model that holds something its target can't run, where nothing else there could."""


class ProfileError(Failure):
    """A profile file that does not say what a profile says."""


class LibraryError(Failure):
    """A TFLM of the user's that a package can't be built with: none at all, another core's, or other headers."""


class EmulationError(Failure):
    """A package that does not fit an emulated core, or does not do there what it must."""
