"""serving/traffic.py: what strangers make up does not grow the figures, and what is asked is counted as before."""

import re
import uuid

import httpx

from serving.routes import ROUTES
from tests.conftest import Server


def test_only_routes_are_counted(tiny_server: Server) -> None:
    made_up = [f"/{uuid.uuid4().hex}", f"/v1/models/{uuid.uuid4().hex}", "/prompt/", "/docs.json"]
    for path in made_up:
        assert httpx.get(f"{tiny_server.url}{path}", timeout=30).status_code == 404
    for _ in range(3):
        httpx.get(f"{tiny_server.url}/info", timeout=30).raise_for_status()
    told = httpx.get(f"{tiny_server.url}/metrics", timeout=30).text
    counted = set(re.findall(r'endpoint="([^"]*)"', told))
    assert "/info" in counted and counted <= ROUTES.keys()
    found = re.search(r'request_total\{endpoint="/info",http_response_code="200"[^}]*\} (\S+)', told)
    assert found and float(found[1]) >= 3
