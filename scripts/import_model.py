"""Bring a model into the Bento model store, list what is there, or check it byte for byte."""

import argparse
import logging
import re
import sys
from dataclasses import replace
from pathlib import Path

import settings
from models import catalog, manifest, origin
from models.failure import Failure


def main() -> int:
    """0: done; 1: it could not be done, and why is on standard error."""
    parser = argparse.ArgumentParser(prog="scripts/import_model", description=__doc__)
    parser.add_argument(
        "name", nargs="?", choices=list(catalog.IMPORTS), metavar="NAME", help=", ".join(catalog.IMPORTS)
    )
    parser.add_argument(
        "--source", type=Path, metavar="DIR", help="take the files from a folder, not from the row's source"
    )
    parser.add_argument("--revision", metavar="COMMIT", help="of the row's hub repository, where none is pinned")
    parser.add_argument("--list", action="store_true", help="print what is in the store")
    parser.add_argument("--verify", action="store_true", help="compare what is in the store with its manifests")
    options = parser.parse_args()
    if not (options.name or options.list or options.verify):
        parser.error("a NAME, --list or --verify is needed")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("zopilot").setLevel(logging.INFO)
    try:
        if options.list or options.verify:
            return show(settings.store_path(), options.verify)
        return bring(pinned(catalog.IMPORTS[options.name], options.revision), options.source)
    except (Failure, settings.SettingError) as failure:
        print(f"scripts/import_model: {getattr(failure, 'message', failure)}", file=sys.stderr)
        return 1


def show(store: Path, verify: bool) -> int:
    """Print every item of the catalogue's models; 1 if one of them is not whole."""
    broken = 0
    for name in catalog.IMPORTS:
        for item in sorted((store / name).glob("*/")):
            try:
                found = manifest.verify(item) if verify else manifest.read(item)
            except Failure as failure:
                print(f"{name}:{item.name}  BROKEN  {failure.message}")
                broken = 1
            else:
                state = "whole" if verify else f"{found.bits} bits"
                print(f"{found.tag}  {state}  {found.resident_bytes:,} bytes")
    return broken


def pinned(model: catalog.Row, revision: str | None) -> catalog.Row:
    """The row at the hub's commit `revision`; Failure where it has one of its own, or this names none."""
    if revision is None:
        return model
    if not isinstance(model.source, origin.Hub) or model.source.revision:
        raise Failure("source_invalid", f"{model.name} has a revision of its own: leave out --revision")
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise Failure("source_invalid", "--revision takes a commit: 40 hexadecimal digits")
    return replace(model, source=replace(model.source, revision=revision))


def bring(model: catalog.Row, folder: Path | None) -> int:
    """Import one row, or make sure that it is there and whole."""
    wanted = settings.read()
    from models import store  # torch comes in here

    tag = store.import_model(model, settings.store_path(), folder, wanted.hub_token, cpu_only=wanted.device == "cpu")
    print(tag)
    return 0


if __name__ == "__main__":
    sys.exit(main())
