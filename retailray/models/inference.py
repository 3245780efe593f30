"""A network as it is fastest to predict with."""

import copy

from torch import nn

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """A copy in eval mode whose BatchNorms are part of the convolutions before them: half of the passes over memory.

    A network that torch.fx cannot follow is copied as it is.
    """
    from torch.fx.experimental.optimization import fuse

    network = copy.deepcopy(network).eval()
    if not any(isinstance(module, _BATCH_NORMS) for module in network.modules()):
        return network
    try:
        return fuse(network)
    except Exception:  # whatever the network's own code raises where it is traced
        return network
