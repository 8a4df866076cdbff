"""The one error of this package."""


class WeightsError(ValueError):
    """A weight file that is damaged, refused, or of another network.

    The message names the file, says what was wrong with it and, where something can be done, what.
    """
