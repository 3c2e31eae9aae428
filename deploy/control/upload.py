"""An imported model onto a network volume, without a pod. Knows no weights.

The manifest goes last and `latest` after it, so that what is not whole is no model to anybody.
"""

from pathlib import Path

from deploy.control.volume import File, Volume, endpoint_of, errors_told, show
from models import manifest
from models.catalog import Row
from models.failure import Failure
from models.manifest import Manifest

BENTO = "model.yaml"


def upload(model: Row, store: Path, volume_id: str, data_center: str, endpoint: str = "") -> Manifest:
    """Bring `model` of `store` onto the volume, where the image looks for it; what was brought.

    The key is boto3's to find: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. When it returns, every byte has been read
    back through the same API and hashes to the manifest. Killed at any moment it goes on where it was, and what is
    there already is proven, not sent. Failure says what stopped it.
    """
    item = manifest.locate(model, store)
    described = manifest.read(item)
    folder = f"models/{described.name}"
    expected = {**described.files, manifest.FILE: manifest.describe(item / manifest.FILE)}
    files = [File(item / name, f"{folder}/{item.name}/{name}", **about) for name, about in expected.items()]
    # These make a folder a model, to BentoML and to us.
    vouching = [file for file in files if file.path.name in (BENTO, manifest.FILE)]
    with errors_told(), Volume(volume_id, data_center, endpoint or endpoint_of(data_center)) as volume:
        _require_whole(described, files)
        volume.bring([file for file in files if file not in vouching], vouching)
        for file in vouching:
            volume.bring([file])
        volume.point(f"{folder}/latest", item.name)
    return described


def _require_whole(described: Manifest, files: list[File]) -> None:
    """What is damaged here must not travel for an hour before that shows."""
    with show(files, "checking") as bar:
        for file in files:
            if manifest.describe(file.path) != {"sha256": file.sha256, "bytes": file.bytes}:
                raise Failure("upload_failed", f"{described.tag} is damaged: run scripts/import_model {described.name}")
            bar.update(file.bytes)
