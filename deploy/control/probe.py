"""Asks the service itself, where it stands: is it ready, what is it doing. Knows nothing of RunPod's REST."""

from typing import Any

import httpx

POD_URL = "https://{id}-3000.proxy.runpod.net"
TIMEOUT = httpx.Timeout(15, connect=5)


class Probe:
    """`key` is RunPod's, for what stands behind its gateway; a pod is never shown it."""

    def __init__(self, key: str, pod_url: str = POD_URL, transport: httpx.BaseTransport | None = None) -> None:
        self._http = httpx.Client(timeout=TIMEOUT, transport=transport)
        self._headers = {"Authorization": f"Bearer {key}"}
        self._pod_url = pod_url

    def close(self) -> None:
        self._http.close()

    def pod_url(self, id: str) -> str:
        return self._pod_url.replace("{id}", id)

    def ready(self, url: str, authorized: bool = False) -> bool:
        """Whether a prompt would be answered there now."""
        answer = self._get(f"{url.rstrip('/')}/readyz", self._headers if authorized else {})
        return answer is not None and answer.status_code == 200

    def takes_jobs(self, url: str) -> bool:
        """Whether a queue is there; `url` is that of its health."""
        answer = self._get(url, self._headers)
        return answer is not None and answer.status_code == 200

    def refuses(self, url: str, key: str) -> bool:
        """Whether the service there asks for another key than `key`."""
        answer = self._get(f"{url.rstrip('/')}/status", {"X-API-Key": key})
        return answer is not None and answer.status_code in (401, 403)

    def status(self, url: str, key: str) -> dict[str, Any] | None:
        """What the service says is under way; None where it does not answer, or not to this key."""
        answer = self._get(f"{url.rstrip('/')}/status", {"X-API-Key": key})
        if answer is None or answer.status_code != 200:
            return None
        try:
            body = answer.json()
        except ValueError:
            return None
        return body if isinstance(body, dict) else None

    def _get(self, url: str, headers: dict[str, str]) -> httpx.Response | None:
        try:
            return self._http.get(url, headers=headers)
        except httpx.RequestError:
            return None
