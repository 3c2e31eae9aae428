"""Why a server cannot take part, as an exception. Its text is shown in the report, never hidden."""


class Unusable(Exception):
    """It does not install, does not start, or answers no form of the question."""
