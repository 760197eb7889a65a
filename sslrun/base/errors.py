"""The one type for what a user can mend."""

from hydra.errors import CompactHydraException


class UserError(CompactHydraException):
    """A mistake that the user can mend: shown as plain lines without a traceback, exit code 1."""
