"""Process 1 of the image: `python -m deploy`. Refuses a dangerous environment, starts the service and its edge.

Ends with 0 when it was told to end and lost nothing, 69 where the service cannot be kept up, 75 where the grace ran
out with work under way, 78 where the environment is refused.
"""

import os
import signal
import sys
from collections.abc import Mapping

import settings

CONFIGURATION = 78

# Each makes BentoML start something else or open something more; a reason that an operator can act on.
REFUSED = {
    "BENTOML_SERVE_COMPONENT": "BentoML would serve an inner part of a service, unpickling what it is sent",
    "BENTOML_SERVE_SERVICE_NAME": "BentoML would serve an inner part of a service, unpickling what it is sent",
    "BENTOML_NO_UDS": "BentoML would talk to itself over open ports",
    "BENTOML_DEBUG": "BentoML would put what it is sent into its log",
    "RUNPOD_REALTIME_PORT": "RunPod's SDK would answer whoever asks at that port, and take no jobs",
    "BENTOML_CONFIG": "it can change who may come in, and what is served",
    "BENTOML_CONFIG_OPTIONS": "it can change who may come in, and what is served",
}


def refuse(environ: Mapping[str, str]) -> None:
    """Raises SettingError where a variable is set that must not be."""
    for name, why in REFUSED.items():
        if environ.get(name):
            raise settings.SettingError(f"{name} must not be set: {why}")


def main() -> int:
    """The exit status."""
    # A process 1 is not ended by what it does not listen to: until there is something to end, it just goes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    settings.harden_process()
    try:
        refuse(os.environ)
        container = settings.read(form=settings.Container)
        # Only now: BentoML reads its variables when it is imported.
        from deploy import http, worker
        from deploy.backend import Backend

        prepare, run = (worker.prepare, worker.run) if container.mode == "queue" else (http.prepare, http.run)
        prepare(container)
        if not (store := settings.store_path()).is_dir():
            raise settings.SettingError(f"there is no model store at {store}: mount the volume that holds it")
        backend = Backend()
    except settings.SettingError as error:
        print(f"zopilot-gpu: {error}", file=sys.stderr)
        return CONFIGURATION
    return run(container, backend)


if __name__ == "__main__":
    sys.exit(main())
