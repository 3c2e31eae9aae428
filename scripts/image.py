"""Build the image with podman or docker, look at what is in it, and run it as narrowly as it may be run."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from scripts import image_check, image_smoke

ROOT = Path(__file__).parent.parent
BASE_PYTHON = "3.11"  # what the base image has, and the locks were made with
TORCH_CPU = "https://download.pytorch.org/whl/cpu"


def main() -> int:
    """0: done; 1: it could not be built, or is not as it must be."""
    options = parse(sys.argv[1:])
    engine = shutil.which("podman") or shutil.which("docker")
    if engine is None:
        print("scripts/image: podman or docker is needed", file=sys.stderr)
        return 1
    try:
        if options.task in ("build", "all"):
            build(engine, options)
        findings: list[str] = []
        if options.task in ("check", "all"):
            findings += image_check.check(engine, options.tag, options.variant, options.sbom)
        if options.task in ("smoke", "all"):
            findings += image_smoke.smoke(engine, options.tag, options.home)
    except subprocess.CalledProcessError as error:
        print(f"scripts/image: {Path(error.cmd[0]).name} {error.cmd[1]} ended with {error.returncode}", file=sys.stderr)
        return 1
    for finding in findings:
        print(f"scripts/image: {finding}", file=sys.stderr)
    return int(bool(findings))


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line, with the tag that its variant has."""
    parser = argparse.ArgumentParser(prog="scripts/image", description=__doc__)
    parser.add_argument("task", choices=["build", "check", "smoke", "all"])
    parser.add_argument("--variant", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--base", metavar="IMAGE", help="instead of the Containerfile's slim Python")
    parser.add_argument("--tag", help="default: zopilot-gpu:VERSION-VARIANT")
    parser.add_argument("--model-store", type=Path, metavar="DIR", help="bake these models in: $BENTOML_HOME/models")
    parser.add_argument("--download", action="store_true", help="fetch packages by this machine's pip, as it is set up")
    parser.add_argument("--sbom", type=Path, default=Path("sbom.json"), metavar="FILE", help="where check writes it")
    parser.add_argument("--home", type=Path, metavar="DIR", help="a BENTOML_HOME with a model for smoke to mount")
    options = parser.parse_args(arguments)
    options.tag = options.tag or f"localhost/zopilot-gpu:{version()}-{options.variant}"
    return options


def build(engine: str, options: argparse.Namespace) -> None:
    """Pack the Bento and build the image of it; raises CalledProcessError."""
    since = time.monotonic()
    with TemporaryDirectory(prefix="zopilot-image-") as scratch:
        context = pack(Path(scratch))
        if options.download:
            download(context, options.variant)
        command = [engine, "build", "--file", str(ROOT / "deploy" / "Containerfile"), "--tag", options.tag]
        if Path(engine).name == "podman":
            command += ["--format", "docker"]  # which has a health check; OCI's has none
        command += ["--target", "baked" if options.model_store else "service"]
        if options.model_store:
            command += ["--build-context", f"store={options.model_store.resolve()}"]
        for name, value in arguments(options).items():
            command += ["--build-arg", f"{name}={value}"]
        subprocess.run([*command, str(context)], check=True)
    print(f"{options.tag}: built in {time.monotonic() - since:.0f} s, {size(engine, options.tag) / 1e9:.2f} GB")


def pack(scratch: Path) -> Path:
    """A built Bento's folder, and an empty one for wheels in it."""
    environ = {**os.environ, "BENTOML_HOME": str(scratch), "BENTOML_DO_NOT_TRACK": "True"}
    subprocess.run(
        [sys.executable, "-m", "bentoml", "build", "--version", "image", "--output", "tag"],
        cwd=ROOT,
        env=environ,
        check=True,
    )
    context = scratch / "bentos" / "zopilot-gpu" / "image"
    (context / "wheels").mkdir()
    return context


def download(context: Path, variant: str) -> None:
    """Every wheel that the image installs, so that its build needs no network."""
    command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--no-cache-dir", "--only-binary", ":all:"]
    command += ["--python-version", BASE_PYTHON, "--dest", str(context / "wheels")]
    for lock in image_check.locks(variant):
        command += ["--requirement", str(ROOT / lock)]
    subprocess.run(command, check=True)


def arguments(options: argparse.Namespace) -> dict[str, str]:
    """The Containerfile's, of what is built and from what."""
    found = {"VARIANT": options.variant, "VERSION": version(), "REVISION": revision(), "SOURCE": source()}
    if options.base:
        found["BASE"] = options.base
    if options.variant == "cpu" and not options.download:
        found["TORCH_INDEX"] = TORCH_CPU
    return found


def version() -> str:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return str(project["version"])


def revision() -> str:
    """The commit; with `-dirty` where it is not all that is built."""
    changed = "-dirty" if git("status", "--porcelain") else ""
    return (git("rev-parse", "HEAD") or "unknown") + changed


def source() -> str:
    """Where the code is published; empty where that is nowhere that others can reach."""
    url = git("config", "remote.origin.url")
    return url if url.startswith("https://") and "@" not in url else ""


def git(*arguments: str) -> str:
    found = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip()


def size(engine: str, tag: str) -> int:
    told = subprocess.run([engine, "image", "inspect", tag], capture_output=True, check=True).stdout
    return int(json.loads(told)[0]["Size"])


if __name__ == "__main__":
    sys.exit(main())
