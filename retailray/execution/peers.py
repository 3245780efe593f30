"""Workers that train together without Ray Train: one actor a rank beside this process, which is rank 0.

For trials. Inside Tune, Ray Train costs some six processes and twenty seconds a trial, and leaves CPUs reserved where a
trial is stopped on a Ray without a dashboard. These actors end with the trial's placement group.
"""

import datetime
import socket
from collections.abc import Callable

import ray
import torch
import torch.distributed

from retailray.execution.distributed import DistributedContext
from retailray.execution.process import prepare_process
from retailray.execution.resources import TrialPlan

PATIENCE = datetime.timedelta(minutes=5)  # of ranks with each other: one that failed must not hold the others for long


class Peers:
    """Runs ``work(world)`` as ranks 1 and up, in lockstep with this process through their gradients."""

    def __init__(self, work: Callable[[DistributedContext], None], plan: TrialPlan) -> None:
        self.size, self.device = plan.num_workers, device_of(plan)
        host = ray.util.get_node_ip_address()
        self.store = torch.distributed.TCPStore(
            host, _free_port(host), is_master=True, wait_for_workers=False, timeout=PATIENCE
        )
        actor = ray.remote(num_cpus=plan.cpus, num_gpus=plan.gpus)(_Rank)
        self.actors = [actor.remote() for _ in range(1, self.size)]
        reference = ray.put(work)
        for rank, one in enumerate(self.actors, 1):
            one.run.remote(reference, plan, rank, host, self.store.port)

    def join(self) -> DistributedContext:
        """Wait for all ranks; the process group that they make is this process's default one."""
        return _join(self.store, 0, self.size, self.device)

    def leave(self) -> None:
        """End the other ranks, wherever they are, and the process group."""
        for one in self.actors:
            ray.kill(one)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def device_of(plan: TrialPlan) -> torch.device:
    """Where each rank of a trial computes."""
    return torch.device("cuda" if plan.gpus else "cpu")


def _join(store: torch.distributed.Store, rank: int, size: int, device: torch.device) -> DistributedContext:
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    return DistributedContext(rank, size, device)


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


class _Rank:
    """An actor that is one rank until rank 0 ends it."""

    def run(self, work: Callable[[DistributedContext], None], plan: TrialPlan, rank: int, host: str, port: int) -> None:
        prepare_process(plan.torch_threads)
        store = torch.distributed.TCPStore(host, port, is_master=False)
        work(_join(store, rank, plan.num_workers, device_of(plan)))
