"""State dicts in files, as training scripts and hubs leave them. No file is unpickled beyond plain tensors."""

import io

import safetensors.torch
import torch

from retailray import storage
from retailray.errors import ModelError

ENDINGS = (".pth", ".pt", ".bin", ".safetensors")
WRAPPERS = ("state_dict", "model", "model_state_dict")  # under which scripts save it, beside optimizers and epochs
PREFIXES = ("module.", "_orig_mod.", "model.")  # of DistributedDataParallel, torch.compile and Lightning
MAX_BYTES = 32 << 30


def read_state(address: str, *, setting: str) -> dict[str, torch.Tensor]:
    """The state dict of a file, without what scripts wrap around it. ``setting``: that named the file.

    Raises:
        ModelError: no plain state dict, or too large. StorageError: the address cannot be read.
    """
    check_size(address, MAX_BYTES, setting=setting)
    data = storage.read_bytes(address)
    try:
        loaded = safetensors.torch.load(data) if address.endswith(".safetensors") else _load_pth(data)
    except Exception as error:  # pickle, zip and safetensors readers each raise their own
        text = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{setting} = {address}: not a plain state dict ({type(error).__name__}: {text}); save one by "
            "torch.save(model.state_dict(), ...) or safetensors.torch.save_file"
        ) from error
    return _without_prefixes(loaded)


def check_size(address: str, at_most: int, *, setting: str = "") -> None:
    """Raises ModelError where a file has more bytes than are read of its kind. ``setting``: that named it."""
    if (size := storage.size(address)) > at_most:
        named = f"{setting} = {address}" if setting else address
        raise ModelError(f"{named}: {size} bytes, more than the {at_most} that such a file is read up to")


def _load_pth(data: bytes) -> dict[str, torch.Tensor]:
    loaded = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    for key in WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    plain = isinstance(loaded, dict) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in loaded.items()
    )
    if not plain:
        raise ValueError(f"expected names to tensors, found {_kind(loaded)}")
    return loaded


def _kind(loaded: object) -> str:
    if not isinstance(loaded, dict):
        return f"a {type(loaded).__name__}"
    strange = (name for name, value in loaded.items() if not isinstance(value, torch.Tensor))
    first = next(strange, None)
    return f"{first!r}: a {type(loaded[first]).__name__}" if first is not None else "names that are not text"


def _without_prefixes(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names without what wrappers put before each of them, in whatever order."""
    while state and (prefix := next((one for one in PREFIXES if all(name.startswith(one) for name in state)), None)):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def misfits(state: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> list[str]:
    """Why a state dict cannot be loaded: how many tensors are missing, of another shape, or unknown, and the first."""
    # counters of BatchNorm are absent from old checkpoints and irrelevant to what a frozen layer computes
    missing = sorted(name for name in own.keys() - state.keys() if not name.endswith("num_batches_tracked"))
    shapes = [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in sorted(own.keys() & state.keys())
        if state[name].shape != own[name].shape
    ]
    strange = sorted(state.keys() - own.keys())
    found = {"tensors missing": missing, "of another shape": shapes, "that the model does not have": strange}
    return [f"{len(names)} {what}, first {names[0]}" for what, names in found.items() if names]
