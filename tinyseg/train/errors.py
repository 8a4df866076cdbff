"""What a user can get wrong, as exceptions: the command line shows their message without a traceback."""


class UserError(Exception):
    """Something outside the program is not as it should be: a setting, a file, a folder, the data.

    The message is one sentence or two for the person at the keyboard: what is wrong, where, and what to do.
    """


class SettingError(UserError, ValueError):
    """A setting that does not exist, has the wrong type or lies out of range."""


class RunFolderError(UserError, OSError):
    """A run folder that is missing, taken, read-only or full."""


class CheckpointError(UserError, ValueError):
    """A checkpoint that is missing, damaged, or of another model."""


class DivergedError(UserError, ArithmeticError):
    """The loss is no longer a finite number."""
