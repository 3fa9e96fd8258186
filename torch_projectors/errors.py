"""What goes wrong for reasons that a user can mend."""


class InputError(Exception):
    """What was given cannot be used; the message says what was expected and what came."""


def first_line(error: BaseException) -> str:
    """What an error of another library says, without its advice to programmers."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
