"""The one error that is the user's to mend. The lowest layer: every room may import this module."""


class UserError(ValueError):
    """A mistake in what the user gave: an option, a file, a table, weights, a folder or a recipe.

    Its text is one line that says what is wrong, where, what was found, what was expected, and what to do next. The
    command lines print it without a traceback and end with exit code 2 (``osteograde.cli.run``). A plain ValueError is
    a fault of the program: it keeps its traceback and ends with exit code 1.
    """
