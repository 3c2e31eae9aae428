"""A refusal or a fault as a value. What each code means on the wire stands in serving/errors.py."""


class Failure(Exception):
    """Why a prompt, an import or a load did not succeed.

    `code` is one of the codes of serving/errors.py, `message` a sentence that holds no text of the caller's document
    and no path, `retry_after` the seconds after which the same request may succeed (None: the code's default).
    """

    def __init__(self, code: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retry_after = retry_after


class FieldFailure(Failure):
    """A failure that one field of the body is to blame for: `param`, by its path."""

    def __init__(self, code: str, message: str, param: str) -> None:
        super().__init__(code, message)
        self.param = param
