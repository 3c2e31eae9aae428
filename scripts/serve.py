"""Serve: import the model if it is not there, start BentoML, and say where it listens and how to ask it."""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import settings
from models import catalog, checkup, manifest
from models.failure import Failure

POLL_SECONDS = 0.2


def main() -> int:
    """BentoML's exit status; 1 where it could not be started."""
    parser = argparse.ArgumentParser(prog="scripts/serve", description=__doc__)
    parser.add_argument("--port", type=int, default=3000)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 to be reached from outside; set a key then")
    parser.add_argument("--model", choices=list(catalog.ROWS), help="default: mixtral with a card, smollm2 without")
    options = parser.parse_args()
    settings.harden_process()
    if options.model:
        os.environ["ZOPILOT_MODEL"] = options.model
    try:
        wanted = settings.read()
        model, here = checkup.choose(wanted.model, wanted.device, settings.visible_cards())
        there = imported(model)
        if not there:  # before anything is downloaded
            checkup.require(checkup.examine_import(model, settings.store_path(), here, wanted.kv_tokens))
    except (Failure, settings.SettingError) as failure:
        print(f"zopilot-gpu: {getattr(failure, 'message', failure)}", file=sys.stderr)
        return 1
    if not there:
        command = [sys.executable, "-m", "scripts.import_model", model.name]
        environ = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        if code := subprocess.run(command, check=False, env=environ).returncode:
            return code
    print(f"zopilot-gpu: loading {model.name}", flush=True)
    return serve(options.host, options.port)


def imported(model: catalog.Model) -> bool:
    """Whether there is an item to load; loading proves that it is whole."""
    try:
        manifest.read(manifest.locate(model, settings.store_path()))
    except Failure:
        return False
    return True


def serve(host: str, port: int) -> int:
    """Run `bentoml serve` as a child until it ends; our signals are passed on to it."""
    command = [
        sys.executable,
        "-m",
        "bentoml",
        "serve",
        "service:ZopilotGPU",
        "--host",
        host,
        "--port",
        str(port),
    ]
    with subprocess.Popen(command) as child:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda received, _: child.send_signal(received))
        threading.Thread(target=greet, args=(child, host, port), daemon=True).start()
        return child.wait()


def greet(child: "subprocess.Popen[bytes]", host: str, port: int) -> None:
    """Wait until the service is ready and print how to ask it."""
    url = f"http://{'localhost' if host in ('0.0.0.0', '127.0.0.1') else host}:{port}"
    while child.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                break
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(POLL_SECONDS)
    else:
        return
    key = " -H 'X-API-Key: YOUR_KEY'" if settings.read().api_keys else ""
    print(
        f"\nzopilot-gpu: ready at {url}. Try:\n\n  curl -s {url}/prompt"
        f" -H 'Content-Type: application/json'{key} -d @examples/request.json\n",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
