"""What a fit or a trial continues from: tensors and plain values in one file of a folder; nothing in it is code."""

import io
from collections.abc import Mapping

from retailray import storage

STATE = "state.pt"


def write_state(folder: str, state: Mapping[str, object] | None) -> None:
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    storage.write_bytes(storage.join(folder, STATE), buffer.getvalue())


def read_state(folder: str) -> dict[str, object] | None:
    """None where there is none."""
    import torch

    address = storage.join(folder, STATE)
    if not storage.exists(address):
        return None
    return torch.load(io.BytesIO(storage.read_bytes(address)), weights_only=True, map_location="cpu")
