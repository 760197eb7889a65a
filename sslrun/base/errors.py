"""The exception for mistakes that users can correct."""

from hydra.errors import CompactHydraException


class UserError(CompactHydraException):
    """A mistake that the user can correct: reported without a traceback, exit code 1."""
