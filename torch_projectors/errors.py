"""What goes wrong for reasons that a user can mend."""


class InputError(Exception):
    """What was given cannot be used; the message says what was expected and what came."""
