"""What an image must be before it is shipped: its recipe, its configuration, its files and the list of its packages."""

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TOOLS = ROOT / ".venv-image" / "bin"
PREFIX = "org.opencontainers.image."
# The official Python image has the fingerprint of who signs Python in it, which is public.
PUBLIC = {"GPG_KEY"}
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
# httptools takes headers of any size; kernels fetches code from the hub; the others install.
UNWANTED = {"httptools", "kernels", "pip", "setuptools", "wheel", "uv"}
OWNED = {"/runpod-volume", *(f"/opt/zopilot/baked{name}" for name in ("", "/bentos", "/envs", "/tmp"))}
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "HOME": "/tmp", "BENTOML_DO_NOT_TRACK": "True"}


def locks(variant: str) -> list[str]:
    """The lock files that an image of this variant is made of."""
    return ["requirements.lock", "requirements-deploy.lock", *(["requirements-cuda.lock"] if variant == "cuda" else [])]


def check(engine: str, tag: str, variant: str, sbom: Path) -> list[str]:
    """All that is wrong with it, one line each; writes the SBOM in CycloneDX's form to `sbom`."""
    findings = lint()
    about = json.loads(run(engine, "image", "inspect", tag))[0]
    findings += judge_config(about["Config"], healthcheck(about)) + judge_history(
        run(engine, "history", "--no-trunc", tag)
    )
    pinned = read_locks(variant)
    contents = look(engine, tag)
    findings += judge_contents(contents) + compare("the image", contents["packages"], pinned)
    list_packages(engine, tag, sbom)
    findings += compare("the SBOM", read_sbom(sbom), pinned)
    print(f"{tag}: {contents['bytes']:,} bytes, {len(contents['packages'])} packages, {len(findings)} findings")
    return findings


def lint() -> list[str]:
    """What hadolint says of the Containerfile; what is ignored says there why."""
    command = [str(TOOLS / "hadolint"), "--no-color", str(ROOT / "deploy" / "Containerfile")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return (found.stdout + found.stderr).splitlines()


def healthcheck(about: dict[str, Any]) -> list[str]:
    """An image's own; docker and podman tell it in different places."""
    found = about["Config"].get("Healthcheck") or about.get("Healthcheck") or {}
    test: list[str] = found.get("Test", [])
    return test


def judge_config(config: dict[str, Any], health: list[str]) -> list[str]:
    """As the engine tells it."""
    labels, environ = config.get("Labels") or {}, dict(each.split("=", 1) for each in config["Env"])
    wrong = []
    for name, wanted, found in [
        ("user", "1034:1034", config.get("User")),
        ("entry point", ["python", "-m", "deploy"], config.get("Entrypoint")),
        ("command", [], config.get("Cmd") or []),
        ("stop signal", "SIGTERM", config.get("StopSignal") or "SIGTERM"),
        ("ports", ["3000/tcp"], list(config.get("ExposedPorts") or {})),
        ("health check", ["CMD", "python", "-c"], health[:3]),
        ("title", "zopilot-gpu", labels.get(f"{PREFIX}title")),
        ("licenses", "Apache-2.0", labels.get(f"{PREFIX}licenses")),
        *((name, value, environ.get(name)) for name, value in ENVIRONMENT.items()),
    ]:
        if found != wanted:
            wrong.append(f"{name} is {found!r}, not {wanted!r}")
    wrong += [f"no label {name}" for name in ("version", "revision") if not labels.get(PREFIX + name)]
    wrong += [f"{name} is in the environment" for name in environ if SECRET.search(name) and name not in PUBLIC]
    return wrong


def judge_history(history: str) -> list[str]:
    """Whether a secret was given to a step of the build, where all can read it."""
    given = re.findall(r"\b([A-Za-z_]*(?:KEY|TOKEN|SECRET|PASSWORD)[A-Za-z_]*)=\S", history)
    return [f"{name} is in the history" for name in sorted(set(given) - PUBLIC)]


def look(engine: str, tag: str) -> dict[str, Any]:
    """What image_probe.py finds inside."""
    command = [engine, "run", "--rm", "--interactive", "--no-healthcheck", "--network", "none", "--read-only"]
    command += ["--user", "0", "--entrypoint", "python", tag, "-"]
    source = (Path(__file__).parent / "image_probe.py").read_text()
    found = subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout
    contents: dict[str, Any] = json.loads(found)
    return contents


def judge_contents(contents: dict[str, Any]) -> list[str]:
    """Nobody can become another, and the service's user can change nothing but the volume."""
    wrong = [f"{path} gives its owner's rights to whoever runs it" for path in contents["raised"]]
    wrong += [f"{path} can be written by anybody" for path in contents["loose"]]
    wrong += [f"{path} belongs to the service's user" for path in contents["owned"] if path not in OWNED]
    wrong += [f"{name} is there, which only a build needs" for name in contents["commands"]]
    wrong += [f"{path} was left behind" for path in contents["caches"]]
    return wrong + [f"{name} is installed" for name in sorted(UNWANTED & set(map(plain, contents["packages"])))]


def read_locks(variant: str) -> dict[str, str]:
    """Version by plain name."""
    lines = [line for name in locks(variant) for line in (ROOT / name).read_text().splitlines()]
    return {plain(name): version for name, found, version in (line.partition("==") for line in lines) if found}


def read_sbom(path: Path) -> dict[str, str]:
    """The Python packages of an SBOM."""
    components = json.loads(path.read_text())["components"]
    return {each["name"]: each["version"] for each in components if each.get("purl", "").startswith("pkg:pypi/")}


def compare(where: str, found: dict[str, str], pinned: dict[str, str]) -> list[str]:
    """Whether it has what the locks name, that alone, and in these versions; a local version (+cpu) names a build."""
    have = {plain(name): version.partition("+")[0] for name, version in found.items()}
    wrong = [f"{where} lacks {name}" for name in sorted(pinned.keys() - have.keys())]
    wrong += [f"{where} has {name}, which no lock names" for name in sorted(have.keys() - pinned.keys())]
    both = sorted(have.keys() & pinned.keys())
    differ = [name for name in both if have[name] != pinned[name]]
    return wrong + [f"{where} has {name} {have[name]}, not {pinned[name]}" for name in differ]


def list_packages(engine: str, tag: str, sbom: Path) -> None:
    """Have syft write it."""
    with scanned(engine, tag) as place:
        command = [str(TOOLS / "syft"), "scan", place, "--quiet", "--override-default-catalogers", "image"]
        command += ["--source-name", tag, "--output", f"cyclonedx-json={sbom}"]
        environ = {**os.environ, "SYFT_CHECK_FOR_APP_UPDATE": "false"}
        subprocess.run(command, env=environ, check=True)


@contextmanager
def scanned(engine: str, tag: str) -> Iterator[str]:
    """An image as syft can read it: from docker itself, as a folder where podman may mount it, else as an archive."""
    if Path(engine).name != "podman":
        yield f"docker:{tag}"
    elif os.getuid() == 0:
        folder = run(engine, "image", "mount", tag).strip()
        try:
            yield f"dir:{folder}"
        finally:
            run(engine, "image", "unmount", tag)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            run(engine, "save", "--format", "docker-archive", "--output", f"{scratch}/image.tar", tag)
            yield f"docker-archive:{scratch}/image.tar"


def plain(name: str) -> str:
    """As PEP 503 has it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
