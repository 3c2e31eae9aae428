"""To be built."""

from deploy.backend import Backend
from settings import Container, SettingError


def prepare(container: Container) -> None:
    """Raises SettingError where this cannot run as it is set up."""
    raise SettingError("not built yet")


def run(container: Container, backend: Backend) -> int:
    """Until it is told to end; the exit status of process 1."""
    raise NotImplementedError
