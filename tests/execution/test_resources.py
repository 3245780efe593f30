import pytest

from retailray.config import ClusterSection
from retailray.errors import CapacityError
from retailray.execution import Capacity, plan_scoring, plan_training


def scoring(capacity, section, num_images=10**6):
    return plan_scoring(capacity, section, num_images=num_images, batch_size=64)


@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 16, 96])
@pytest.mark.parametrize("plan", [scoring, plan_training])
@pytest.mark.parametrize("workers", [None, 1, 2, 4])
def test_actors_leave_room_for_the_tasks_that_feed_them(cpus, plan, workers):
    made = plan(Capacity(cpus, 0, 1e9), ClusterSection(num_workers=workers))
    assert made.num_actors * made.actor_cpus + made.task_cpus <= cpus
    assert made.task_cpus != made.actor_cpus, "Ray Data would fuse decoding into the predictor"
    assert made.num_actors == workers or workers is None
    assert made.actor_gpus == 0


def test_one_actor_a_gpu():
    capacity = Capacity(16, 4, 1e9)
    assert scoring(capacity, ClusterSection()).num_actors == 4
    assert plan_training(capacity, ClusterSection()).actor_gpus == 1
    assert scoring(capacity, ClusterSection(use_gpu=False)).num_actors == 8


@pytest.mark.parametrize(("images", "asked", "actors"), [(1, None, 1), (512, None, 1), (513, None, 2), (100, 3, 3)])
def test_no_more_predictors_than_are_worth_their_start(images, asked, actors):
    section = ClusterSection(num_workers=asked)
    assert scoring(Capacity(16, 4, 1e9), section, images).num_actors == actors


@pytest.mark.parametrize(
    ("capacity", "section", "words"),
    [
        (Capacity(2, 0, 1), {"num_workers": 9}, "2 CPUs, which carry 8"),
        (Capacity(8, 2, 1), {"num_workers": 3}, "2 GPUs"),
        (Capacity(8, 0, 1), {"use_gpu": True}, "0 GPUs"),
        (Capacity(0, 0, 1), {}, "no CPUs"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_numbers(capacity, section, words):
    with pytest.raises(CapacityError, match=words):
        plan_training(capacity, ClusterSection(**section))


def test_predictors_share_gpus_and_no_share_lies_on_two():
    section = ClusterSection(gpus_per_predictor=0.4)
    plan = scoring(Capacity(16, 2, 1e9), section)
    assert (plan.num_actors, plan.actor_gpus) == (4, 0.4)
    with pytest.raises(CapacityError, match="2 GPUs, which carry 4"):
        scoring(Capacity(16, 2, 1e9), ClusterSection(gpus_per_predictor=0.4, num_workers=5))


@pytest.mark.parametrize(
    ("machines", "of_cpus", "workers", "placement", "threads"),
    [
        (1, 8, 2, "pack", 4),
        (4, 8, 4, "spread", 8),
        (4, 8, 4, "pack", 2),
        (3, 2, 2, "spread", 2),
        (4, 8, 8, "spread", 4),
    ],
)
def test_threads_are_those_of_a_machine_not_of_the_cluster(machines, of_cpus, workers, placement, threads):
    capacity = Capacity(machines * of_cpus, 0, 1e9, num_machines=machines, machine_cpus=of_cpus)
    plan = plan_training(capacity, ClusterSection(num_workers=workers, placement=placement))
    assert plan.torch_threads == threads
