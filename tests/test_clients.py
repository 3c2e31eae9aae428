"""tests/clients.py: unmodified clients of the public API against the service, if scripts/clients has installed them."""

import subprocess

import pytest

from tests.clients import CHECKS
from tests.conftest import ROOT, Server

SERVERS = {"embeddings": "tiny_server", "image": "seeing_server"}
PYTHON = ROOT / ".venv-clients" / "bin" / "python"


@pytest.mark.skipif(not PYTHON.exists(), reason="scripts/clients installs them")
@pytest.mark.parametrize("check", CHECKS)
def test_a_client(check: str, request: pytest.FixtureRequest) -> None:
    """Against a service that has what is asked for."""
    server: Server = request.getfixturevalue(SERVERS.get(check, "server"))
    command = [str(PYTHON), "-m", "tests.clients", check, server.url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in server.log.read_text()
