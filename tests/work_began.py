"""A bad request must be refused before any work: a function that is work fails the test that calls it."""


class WorkBeganError(BaseException):
    """Not an Exception: commands answer those in one line."""


def forbid(monkeypatch, target):
    """Let a test fail where a function is called."""

    def called(*arguments):
        raise WorkBeganError(f"{target} was called")

    monkeypatch.setattr(target, called)
