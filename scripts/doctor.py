"""Look whether this machine can serve a model: one line a condition, what was found, what is needed, how to mend it."""

import argparse
import sys

import settings
from models import catalog, checkup
from models.failure import Failure


def main() -> int:
    """0: all conditions hold; 1: one does not."""
    parser = argparse.ArgumentParser(prog="scripts/doctor", description=__doc__)
    parser.add_argument("name", nargs="?", choices=list(catalog.ROWS), metavar="NAME", help=", ".join(catalog.ROWS))
    options = parser.parse_args()
    settings.harden_process()
    try:
        # What the checks themselves need.
        import huggingface_hub  # noqa: F401
        import psutil  # noqa: F401
        import pynvml  # noqa: F401
    except ModuleNotFoundError as missing:
        print(f"FAIL  packages: {missing.name} is not installed; run scripts/install requirements.lock")
        return 1
    try:
        wanted = settings.read()
        model, here = checkup.choose(options.name or wanted.model, wanted.device, settings.visible_cards())
    except (Failure, settings.SettingError) as failure:
        print(f"FAIL  {getattr(failure, 'message', failure)}")
        return 1
    print(f"{model.name} on {here.name}")
    checks = checkup.examine(model, settings.store_path(), here, wanted.kv_tokens)
    for check in checks:
        print(f"{'ok  ' if check.holds else 'FAIL'}  {check}")
    return 0 if all(check.holds for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
