"""Run an image as narrowly as it may be run, ask it a question, and have it end: what a platform would do with it."""

import json
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs

from scripts import image_check

ROOT = Path(__file__).parent.parent
READY_SECONDS = 180.0
GRACE = 30
MEMORY = "4g"
# What the root and the user's rights must forbid, tried from inside; /tmp and the volume are all there is to write.
INSIDE = """
import json, os, sys, tempfile
def writes(folder):
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
folders = ["/", "/opt/zopilot/src", "/opt/zopilot/venv", "/opt/zopilot/home", "/etc", "/usr", "/run", "/dev/shm"]
print(json.dumps({
    "uid": os.getuid(),
    "capabilities": int(status["CapBnd"], 16) | int(status["CapEff"], 16),
    "no new privileges": int(status["NoNewPrivs"]),
    "written": [folder for folder in folders if writes(folder)],
    "lacking": [folder for folder in ("/tmp", "/runpod-volume") if not writes(folder)],
    "process 1": open("/proc/1/cmdline").read().split("\\0")[1:-1],
}))
"""
WANTED = {
    "uid": 1034,
    "capabilities": 0,
    "no new privileges": 1,
    "written": ["/dev/shm"],
    "lacking": [],
    "process 1": ["-m", "deploy"],
}


def smoke(engine: str, tag: str, home: Path | None) -> list[str]:
    """All that went wrong, one line each. `home`: whose models are mounted; None where the image has its own."""
    name, key = f"zopilot-smoke-{secrets.token_hex(4)}", secrets.token_urlsafe(24)
    volume = Path(tempfile.mkdtemp(prefix="zopilot-volume-"))
    volume.chmod(0o777)  # whatever the engine makes of the user's number
    try:
        return _smoke([engine], tag, home, name, key, volume)
    finally:
        subprocess.run([engine, "rm", "--force", name], capture_output=True, check=False)
        shutil.rmtree(volume, ignore_errors=True)


def _smoke(engine: list[str], tag: str, home: Path | None, name: str, key: str, volume: Path) -> list[str]:
    port = free_port()
    since = time.monotonic()
    subprocess.run([*engine, *arguments(tag, home, name, key, volume, port)], stdout=subprocess.DEVNULL, check=True)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
        first = wait(client, "/livez", since)
        ready = wait(client, "/readyz", since)
        if ready is None:
            return ["it was never ready", *logs(engine, name)]
        wrong = ask(client, key)
    found = json.loads(inside(engine, name, "-c", INSIDE))
    wrong += [f"{what} is {found[what]!r}, not {wanted!r}" for what, wanted in WANTED.items() if found[what] != wanted]
    about = json.loads(subprocess.check_output([*engine, "image", "inspect", tag]))[0]
    try:
        inside(engine, name, *image_check.healthcheck(about)[2:])
    except subprocess.CalledProcessError:
        wrong.append("its health check fails")
    stopping = time.monotonic()
    subprocess.run([*engine, "stop", "--time", str(GRACE + 10), name], capture_output=True, check=True)
    stopped = time.monotonic() - stopping
    status = json.loads(subprocess.check_output([*engine, "inspect", name]))[0]["State"]["ExitCode"]
    said = logs(engine, name)
    if status:
        wrong.append(f"it ended with {status} when it was told to end")
    if stopped > GRACE:
        wrong.append(f"it took {stopped:.0f} s to end, with nothing under way")
    if any(key in line for line in said):
        wrong.append("its log has the key")
    print(f"{tag}: answers after {first:.1f} s, ready after {ready:.1f} s, ended in {stopped:.1f} s", flush=True)
    return wrong + said if wrong else []


def arguments(tag: str, home: Path | None, name: str, key: str, volume: Path, port: int) -> list[str]:
    """A container that may do nothing but what the service needs."""
    command = ["run", "--detach", "--name", name, "--no-healthcheck", "--network", "host", "--read-only"]
    command += ["--cap-drop", "all", "--security-opt", "no-new-privileges", "--memory", MEMORY, "--pids-limit", "256"]
    command += ["--tmpfs", "/tmp:rw,noexec,nosuid,nodev,size=512m,mode=1777", "--volume", f"{volume}:/runpod-volume"]
    if home is not None:
        command += ["--volume", f"{(home / 'models').resolve()}:/runpod-volume/models:ro"]
    given = {"PORT": port, "ZOPILOT_HOST": "127.0.0.1", "ZOPILOT_GPU_API_KEY": key, "ZOPILOT_GRACE": GRACE}
    if home is None:
        given["ZOPILOT_RECEIPT_KEY"] = secrets.token_urlsafe(24)
    for variable, value in given.items():
        command += ["--env", f"{variable}={value}"]
    return [*command, tag]


def wait(client: httpx.Client, path: str, since: float) -> float | None:
    """Seconds after `since` at which `path` answered 200."""
    while time.monotonic() < since + READY_SECONDS:
        try:
            if client.get(path).status_code == 200:
                return time.monotonic() - since
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    return None


def ask(client: httpx.Client, key: str) -> list[str]:
    """The README's own question, without the key and with it."""
    body: dict[str, Any] = json.loads((ROOT / "examples" / "request.json").read_text())
    wrong = []
    if (status := client.post("/prompt", json=body).status_code) != 401:
        wrong.append(f"/prompt without a key answers {status}")
    response = client.post("/prompt", json=body, headers={"X-API-Key": key})
    if response.status_code != 200 or response.json()["success"] is not True:
        return [*wrong, f"/prompt answers {response.status_code}: {response.text}"]
    try:
        jsonschema_rs.validate(body["schema"], json.loads(response.json()["output"]))
    except jsonschema_rs.ValidationError as error:
        wrong.append(f"the answer does not fit its schema: {error.message}")
    return wrong


def inside(engine: list[str], name: str, *arguments: str) -> str:
    """What the container's own Python prints; raises CalledProcessError."""
    command = [*engine, "exec", name, "python", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def logs(engine: list[str], name: str) -> list[str]:
    found = subprocess.run([*engine, "logs", name], capture_output=True, text=True, check=False)
    return (found.stdout + found.stderr).splitlines()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
