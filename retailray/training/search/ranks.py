"""The other workers of a trial that has several: one actor a rank, in lockstep with the trial through its gradients.

Not Ray Train: inside Tune it costs some six processes and twenty seconds a trial, and leaves CPUs reserved where a
trial is stopped on a Ray without a dashboard. These actors end with the trial's placement group.
"""

import datetime
import socket
from typing import Any

import ray
import torch
import torch.distributed

from retailray.models.process import prepare_process
from retailray.training.engine import World

PATIENCE = datetime.timedelta(minutes=5)  # of ranks with each other: one that failed must not hold the others for long


class Ranks:
    """Starts ranks 1 and up of one trial; this process is rank 0. Each rank runs the same epochs on its own rows."""

    def __init__(self, shared: Any, drawn: dict[str, Any], start: dict[str, Any] | None) -> None:
        plan = shared.plan
        self.size, self.device = plan.num_workers, torch.device("cuda" if plan.gpus else "cpu")
        host = ray.util.get_node_ip_address()
        self.store = torch.distributed.TCPStore(
            host, _free_port(host), is_master=True, wait_for_workers=False, timeout=PATIENCE
        )
        actor = ray.remote(num_cpus=plan.cpus, num_gpus=plan.gpus)(_Rank)
        self.actors = [actor.remote() for _ in range(1, self.size)]
        shared_ref = ray.put(shared)
        for rank, one in enumerate(self.actors, 1):
            one.run.remote(shared_ref, drawn, start, rank, host, self.store.port)

    def join(self, rank: int) -> World:
        """Wait for all ranks; the process group that they make is this process's default one."""
        return join(self.store, rank, self.size, self.device)

    def leave(self) -> None:
        """End the other ranks, wherever they are, and the process group."""
        for one in self.actors:
            ray.kill(one)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def join(store: Any, rank: int, size: int, device: torch.device) -> World:
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    return World(rank, size, device)


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


class _Rank:
    """An actor that is one rank of a trial until the trial ends it."""

    def run(self, shared: Any, drawn: dict[str, Any], start: Any, rank: int, host: str, port: int) -> None:
        from retailray.training.search.trial import make_engine

        prepare_process(shared.plan.torch_threads)
        store = torch.distributed.TCPStore(host, port, is_master=False)
        device = torch.device("cuda" if shared.plan.gpus else "cpu")
        engine = make_engine(shared, shared.trial(drawn), join(store, rank, shared.plan.num_workers, device))
        for _ in engine.epochs(start):
            pass
