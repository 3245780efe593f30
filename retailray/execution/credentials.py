"""The storage environment (``AWS_*``, ``AZURE_STORAGE_*``, Google's key) on its way to a cluster, encrypted.

Ray writes runtime environments, ``env_vars`` and all, to logs on every machine and shows them to whoever may ask its
dashboard. So credentials travel in two other ways:

- from a driver to the workers: as a pickled set-up function, which Ray keeps in its own store and no log;
- from ``submit`` to the driver: encrypted (:data:`SEALED`). The key is derived from a random file of the uploaded
  package and, where the cluster has token authentication, from the token, which is in neither. On a cluster without
  tokens this keeps secrets out of logs and no more: who reaches its dashboard may run what he likes there.
"""

import base64
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from retailray import events, storage
from retailray.errors import CapacityError

SEALED = "RETAILRAY_SEALED_ENV"
KEY_FILE = ".retailray-key"  # in the working directory of a submitted job
MLFLOW_ENV = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
WITH_TOKEN, WITHOUT_TOKEN = "token", "file"


def storage_environment() -> dict[str, str]:
    """What of this process's environment is about storage, and MLflow's credentials.

    In place of the path of Google's key its content, which other machines do not have and need in no file; nothing of
    one that cannot be read, or that itself names files of this machine.
    """
    values = {name: os.environ[name] for name in (*storage.WORKER_ENV, *MLFLOW_ENV) if name in os.environ}
    path = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    if path and storage.GOOGLE_KEY not in values:
        try:
            key = Path(path).read_text()
            if json.loads(key)["type"] != "external_account":
                values[storage.GOOGLE_KEY] = key
        except (OSError, ValueError, KeyError, TypeError) as error:
            note = f"GOOGLE_APPLICATION_CREDENTIALS = {path} cannot be read ({error}); other machines get no key of it"
            events.emit("warning", note=note)
    return values


def setup_hook() -> Callable[[], None] | None:
    """What every worker process of a Ray session runs first, so that it can reach the storage."""
    values = storage_environment()
    if not values:
        return None

    def give_storage_environment() -> None:  # pickled by value: workers need nothing of ours to run it
        import os

        os.environ.update(values)

    return give_storage_environment


def ray_token() -> str | None:
    """The token of Ray's authentication, from where Ray itself looks for it."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return (path.read_text().strip() or None) if path.is_file() else None
    except OSError as error:
        raise CapacityError(f"Ray's token in {path} cannot be read: {error}") from error


def new_key() -> bytes:
    return secrets.token_bytes(32)


def encrypt_credentials(values: dict[str, str], key: bytes, *, token: str | None) -> str:
    """``values``, encrypted; ``token``: of a cluster that has one."""
    text = Fernet(_derive(key, token)).encrypt(json.dumps(values).encode()).decode()
    return f"{WITH_TOKEN if token else WITHOUT_TOKEN}:{text}"


def decrypt_credentials(sealed: str, key: bytes) -> dict[str, str]:
    """The reverse of :func:`encrypt_credentials`. Raises CapacityError: this machine has another token, or none."""
    kind, _, text = sealed.partition(":")
    token = ray_token() if kind == WITH_TOKEN else None
    try:
        return json.loads(Fernet(_derive(key, token)).decrypt(text.encode()))
    except InvalidToken as error:
        raise CapacityError(
            "the storage credentials that came with this job cannot be opened: the machine that runs it has another "
            "Ray token than the one that submitted it, or none (RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token)"
        ) from error


def load_job_credentials() -> None:
    """Give this process, the driver of a submitted job, the storage environment that came with the job."""
    sealed = os.environ.get(SEALED)
    if sealed and Path(KEY_FILE).is_file():
        os.environ.update(decrypt_credentials(sealed, Path(KEY_FILE).read_bytes()))


def _derive(key: bytes, token: str | None) -> bytes:
    salt = token.encode() if token else None
    derived = HKDF(SHA256(), length=32, salt=salt, info=b"retailray storage environment").derive(key)
    return base64.urlsafe_b64encode(derived)
