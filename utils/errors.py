"""The one exception that stands for a user's mistake."""


class UserError(Exception):
    """A mistake that its message, one line, tells the user how to mend.

    `utils.cli.run` prints it to stderr and exits with status 2; everything else that is raised is a defect of ours.
    """
