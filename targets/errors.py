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


class EmulationError(Failure):
    """A program that could not be built for an emulated core, or did not do there what it must."""
