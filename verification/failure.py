"""Why there is nothing to say: data or a service that cannot be used."""


class Unusable(Exception):
    """The message is for whoever runs it, and holds no text of a document."""
