"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """One sentence: what is wrong, where (file, column, row, flag), and what to do."""
