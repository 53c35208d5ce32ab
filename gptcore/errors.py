"""Errors that a user can act on. The command line prints the message alone and exits with `exit_code`."""


class UserError(ValueError):
    """Wrong usage or configuration: what is wrong, where, and what to do. Exit code 2."""

    exit_code = 2


class RunError(RuntimeError):
    """The request was valid but could not be carried out (missing data, diverged loss, damaged file). Exit code 1."""

    exit_code = 1


class DataError(RunError):
    """A prepared data folder is missing, incomplete, foreign or unsafe."""


class CheckpointError(RunError):
    """A checkpoint is missing, damaged, or belongs to another architecture."""
