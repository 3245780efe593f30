"""The loop without Ray: what a phase trains, and every option's effect, on a small model and made-up rows."""

import copy
import dataclasses
import io
import time

import numpy as np
import pytest
import torch
import torchvision

from retailray.config import TrainSection
from retailray.errors import ConfigError, ModelError
from retailray.execution.distributed import DistributedContext
from retailray.models.backbones import backbone_of, build_model
from retailray.models.torchvision_blocks import to_blocks
from retailray.training.loop import TrainingLoop
from retailray.training.network import Network, NetworkSpec
from retailray.training.optim import make_average, make_optimizer, make_schedule
from retailray.training.phases import ResolvedPhase, check_batch_size, num_passes
from tests import oracles

SIZE, CLASSES = 16, 3
NETWORK = NetworkSpec(backbone_of("cnn2"), CLASSES, SIZE, None, (0.5,) * 3, (0.2,) * 3, "float32")


ROWS = ("validation", "temperature")


class MadeUpRows:
    """Pixels whose brightness tells the class, in batches like a source's."""

    def __init__(self, num_rows=48, batch_size=16, seed=0, labels=None):
        generator = np.random.default_rng(seed)
        self.targets = np.arange(num_rows) % CLASSES if labels is None else labels
        noise = generator.integers(0, 60, (num_rows, 3, SIZE, SIZE))
        self.images = (noise + 90 * self.targets[:, None, None, None]).clip(0, 255).astype(np.uint8)
        self.batch_size, self.num_rows = batch_size, num_rows
        self.num_steps = -(-num_rows // batch_size)

    def epoch(self, epoch, *, num_workers, pin):
        order = np.arange(len(self.targets))
        if epoch is not None:
            order = np.random.default_rng(epoch).permutation(order)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            images, targets = torch.from_numpy(self.images[rows]), torch.from_numpy(self.targets[rows])
            yield images, targets, torch.ones(len(rows)), torch.from_numpy(rows)


def phase(epochs=2, trainable="all", head_lr=1e-2, backbone_lr=1e-3):
    chain = build_model("cnn2", CLASSES, image_size=SIZE).blocks()
    cut = chain.num_frozen_blocks(trainable)
    return ResolvedPhase(epochs, trainable, cut, cut, head_lr, backbone_lr)


def make_loop(phases, train=None, rows=None, num_cached_blocks=0, **settings):
    torch.manual_seed(0)
    model = build_model("cnn2", CLASSES, image_size=SIZE)
    rows = rows or {"train": MadeUpRows(), "validation": MadeUpRows(seed=1), "temperature": MadeUpRows(seed=2)}
    return TrainingLoop(
        Network(model, NETWORK, DistributedContext()),
        phases=[dataclasses.replace(one, num_cached_blocks=0) for one in phases],
        train=train or TrainSection(),
        open_batches=lambda split, _: (rows[split], num_cached_blocks),
        **settings,
    )


def run(loop, start=None):
    """The state after every epoch, as files."""
    files = []

    for _ in loop.epochs(start):
        files.append(io.BytesIO())
        torch.save(loop.state(), files[-1])
        files[-1].seek(0)
    return files


def weights(loop):
    return {name: value.clone() for name, value in loop.network.model.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_phases_train_what_they_say_and_the_best_epoch_is_kept():
    loop = make_loop([phase(2, "head"), phase(8, "last1", head_lr=3e-2, backbone_lr=3e-3)])
    before = weights(loop)
    run(loop)
    history = loop.progress.history
    assert [row["epoch"] for row in history] == list(range(1, 11))
    assert [row["trainable"] for row in history] == ["head"] * 2 + ["last1"] * 8
    best = oracles.best_epoch(history)
    assert loop.progress.best_epoch == best["epoch"]
    assert best["validation_top1"] > 0.9
    after = weights(loop)
    changed = {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])}
    assert changed == {"dense", "head"}, "the convolutions were frozen"
    with torch.no_grad():
        logits, targets, _, _ = loop.validator.outputs("validation")
    assert (logits.argmax(1) == targets).float().mean().item() == pytest.approx(best["validation_top1"])


def test_a_later_phase_that_is_worse_leaves_no_trace():
    loop = make_loop([phase(2, "head", head_lr=0.05), phase(1, "all", head_lr=50.0, backbone_lr=50.0)])
    before = weights(loop)
    run(loop)
    assert loop.progress.best_epoch in (1, 2)
    after = weights(loop)
    assert {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])} == {"head"}


@pytest.mark.parametrize("stop", [1, 2, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer": "sgd", "ema_decay": 0.9},
        {"mixup": 0.3, "patience": 2, "metric": "loss"},
    ],
)
def test_going_on_from_a_state_ends_where_an_uninterrupted_run_ends(stop, settings):
    train = TrainSection(**settings)
    phases = [phase(2, "head"), phase(2, "all")]
    whole = make_loop(phases, train)
    files = run(whole)
    again = make_loop(phases, train)
    run(again, torch.load(files[stop - 1], weights_only=True))
    times = {"seconds", "train_seconds", "data_wait_seconds"}
    strip = lambda history: [{key: row[key] for key in row.keys() - times} for row in history]  # noqa: E731
    assert strip(again.progress.history) == strip(whole.progress.history)
    assert same(weights(again), weights(whole))
    assert again.validator.calibration(ROWS).temperature == whole.validator.calibration(ROWS).temperature


def test_kept_activations_train_like_pixels():
    """The same head, from pixels through frozen blocks and from what those blocks gave."""
    direct = make_loop([phase(3, "head")])
    chain, normalize = direct.network.chain, direct.network.normalize
    direct.network.model.eval()
    rows = {"train": MadeUpRows(), "validation": MadeUpRows(seed=1)}
    kept = {}
    for name, source in rows.items():
        with torch.no_grad():
            values = chain.run(0, len(chain.blocks))(normalize(torch.from_numpy(source.images)))
        kept[name] = MadeUpRows(seed=0 if name == "train" else 1)
        kept[name].images = values.numpy()
    cached = make_loop([phase(3, "head")], rows=kept, num_cached_blocks=len(chain.blocks))
    run(direct)
    run(cached)
    for left, right in zip(direct.progress.history, cached.progress.history, strict=True):
        assert left["train_loss"] == pytest.approx(right["train_loss"], rel=1e-4)
        assert left["validation_loss"] == pytest.approx(right["validation_loss"], rel=1e-4)
    assert torch.allclose(
        direct.validator.outputs("validation")[0], cached.validator.outputs("validation")[0], atol=1e-3
    )


def test_patience_ends_a_phase_and_the_best_weights_return():
    loop = make_loop(
        [phase(30, "all", head_lr=1.0, backbone_lr=1.0)], TrainSection(patience=2, metric="loss", optimizer="sgd")
    )
    run(loop)
    history = loop.progress.history
    assert len(history) == loop.progress.best_epoch + 2 < 30
    logits, targets, _, _ = loop.validator.outputs("validation")
    loss = torch.nn.functional.cross_entropy(logits, targets).item()
    assert loss == pytest.approx(min(row["validation_loss"] for row in history), rel=1e-4)


def test_the_kept_weights_are_the_averaged_ones():
    loop = make_loop([phase(2, "all")], TrainSection(ema_decay=0.9))
    run(loop)
    average = loop.steps.average.module.state_dict()
    last = loop.progress.history[-1]
    assert loop.progress.best_epoch == last["epoch"]
    own = dict(loop.steps.suffix.state_dict())
    assert all(torch.allclose(average[name], own[name]) for name in own)


def test_averages_leave_indices_alone():
    holder = torch.nn.Linear(2, 2)
    holder.register_buffer("index", torch.arange(169))
    average = make_average(holder, 0.9)
    for _ in range(3):
        average.update_parameters(holder)
    assert torch.equal(average.module.index, torch.arange(169))


def test_what_diverged_is_never_the_best():
    loop = make_loop([phase(2, "all", head_lr=1e30, backbone_lr=1e30)], TrainSection(optimizer="sgd"))
    before = weights(loop)
    run(loop)
    assert loop.progress.best_epoch == 0
    assert same(weights(loop), before)


def test_guesses_are_what_the_logits_say():
    """A few numbers a row and not one for each class: what folds gather does not grow with the classes."""
    loop = make_loop([phase(2, "head")])
    run(loop)
    logits, targets, _, row_ids = loop.validator.outputs("validation")
    told, classes, scores, own, ids = loop.validator.guesses("validation", 1.7)
    assert torch.equal(told, targets)
    assert torch.equal(ids, row_ids)
    assert torch.allclose(own, (logits / 1.7).softmax(1)[torch.arange(len(targets)), targets], atol=1e-6)
    assert classes.shape == (len(targets), CLASSES)
    order = torch.from_numpy(np.argsort(-logits.numpy(), axis=1))
    assert torch.equal(classes, order)
    assert torch.allclose(scores, (logits / 1.7).softmax(1).gather(1, order), atol=1e-6)


def test_so_many_rows_as_the_limit_are_taken_evenly_from_all_batches():
    """48 rows in batches of 16: at most 5 of them, from whichever batches, and not one of every batch at least."""
    loop = make_loop([phase(1, "head")], TrainSection(batch_size=16))
    run(loop)
    everything = loop.validator.outputs("validation")
    for limit, every in ((5, 10), (1, 48), (48, 1)):
        for all_, some in zip(everything, loop.validator.outputs("validation", limit=limit), strict=True):
            assert torch.allclose(some, all_[::every])


def test_a_split_without_rows_has_no_logits():
    rows = {"train": MadeUpRows(), "validation": MadeUpRows(num_rows=0), "temperature": MadeUpRows(num_rows=0)}
    loop = make_loop([phase(1, "head")], rows=rows)
    run(loop)
    assert loop.validator.outputs("validation")[0].shape == (0, CLASSES)
    assert loop.validator.calibration(ROWS).temperature == 1.0


def test_balance_weighs_classes_not_rows():
    labels = np.array([0] * 40 + [1] * 4 + [2] * 4)
    rows = {"train": MadeUpRows(labels=labels), "validation": MadeUpRows(seed=1)}
    share = torch.tensor([48 / (3 * n) for n in (40, 4, 4)])
    plain = make_loop([phase(4, "head")], rows=rows)
    weighed = make_loop([phase(4, "head")], rows=rows, class_weights=share)
    run(plain)
    run(weighed)
    recall = []
    for loop in (plain, weighed):
        logits, targets, _, _ = loop.validator.outputs("validation")
        recall.append((logits.argmax(1) == targets)[targets > 0].float().mean().item())
    assert recall[1] > recall[0]


@pytest.mark.parametrize(
    "settings", [{"mixup": 0.4}, {"cutmix": 0.4}, {"mixup": 0.4, "cutmix": 0.4}, {"label_smoothing": 0.2}]
)
def test_soft_targets_keep_the_model_from_certainty(settings):
    sure, soft = make_loop([phase(6, "all")]), make_loop([phase(6, "all")], TrainSection(**settings))
    run(sure)
    run(soft)
    score = [loop.validator.outputs("train")[0].softmax(1).amax(1).mean().item() for loop in (sure, soft)]
    assert score[1] < score[0]


@pytest.mark.slow
def test_compiled_training_is_the_same_training():
    plain, compiled = make_loop([phase(1, "last1")]), make_loop([phase(1, "last1")], TrainSection(compile=True))
    run(plain)
    run(compiled)
    left, right = (loop.progress.history[0]["train_loss"] for loop in (plain, compiled))
    assert left == pytest.approx(right, rel=1e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_rates_fall_from_block_to_block_and_norms_are_spared(optimizer):
    chain = to_blocks(build_model("resnet18", 4))
    cut = chain.num_frozen_blocks("last3")
    train = TrainSection(optimizer=optimizer, layer_decay=0.5, weight_decay=0.1)
    groups = make_optimizer(chain, ResolvedPhase(1, "last3", cut, cut, 0.08, 0.04), train).param_groups
    rate = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    for expected, module in zip(
        (0.08, 0.04, 0.02, 0.01), (chain.head, *[b for _, b in chain.blocks[:-4:-1]]), strict=True
    ):
        for parameter in module.parameters():
            assert rate[id(parameter)] == pytest.approx(expected)
            assert decay[id(parameter)] == (0.1 if parameter.ndim > 1 else 0.0)
    assert len(rate) == sum(1 for _ in chain.suffix(cut).parameters())


@pytest.mark.parametrize(
    ("arch", "spared"),
    [
        ("vit_b_32", {"class_token", "pos_embedding"}),
        ("swin_t", {"relative_position_bias_table"}),
        ("swin_v2_t", {"logit_scale", "cpb_mlp.0.weight", "cpb_mlp.2.weight"}),
        ("convnext_tiny", {"layer_scale"}),
        ("maxvit_t", {"relative_position_bias_table"}),
        ("efficientnet_v2_s", set()),
    ],
)
def test_embeddings_tables_and_scales_are_not_decayed(arch, spared):
    """Kind of fault: what has two dimensions counts as a matrix, and positions are pulled to zero with the weights.

    Oracle: the lists of ``no_weight_decay`` of the networks' own recipes, in torchvision's names.
    """
    model = torchvision.models.get_model(arch, weights=None, num_classes=4)
    expected = {id(one) for name, one in model.named_parameters() if one.ndim < 2 or any(map(name.endswith, spared))}
    assert all(any(name.endswith(one) for name, _ in model.named_parameters()) for one in spared)
    groups = make_optimizer(to_blocks(model), phase(), TrainSection()).param_groups
    decays = {id(one): group["weight_decay"] for group in groups for one in group["params"]}
    assert {one for one, decay in decays.items() if not decay} == expected
    assert decays.keys() == {id(one) for one in model.parameters()}


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 10, 30])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_every_number_of_steps_warms_up_and_falls(num_steps, warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = make_schedule(optimizer, num_steps, warmup)
    rates = []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert all(0 < rate <= 0.1 for rate in rates)
    if num_steps >= 7:
        assert max(rates) == pytest.approx(0.1)
        assert rates[-1] < 0.05
        assert (rates[0] < 0.1) == (warmup > 0)


def test_running_statistics_of_batch_norm_are_part_of_a_state_and_of_the_best_weights():
    """Kind of fault: a model goes on with the statistics of before its interruption, or is served with them."""

    def make():
        torch.manual_seed(0)
        rows = {"train": MadeUpRows(), "validation": MadeUpRows(seed=1), "temperature": MadeUpRows(seed=2)}
        return TrainingLoop(
            Network(build_model("resnet18", CLASSES, image_size=32), NETWORK, DistributedContext()),
            phases=[ResolvedPhase(3, "all", 0, 0, 1e-3, 1e-3, trains_batch_norm=True)],
            train=TrainSection(),
            open_batches=lambda split, _: (rows[split], 0),
        )

    whole, again = make(), make()
    before = whole.network.model.bn1.running_mean.clone()
    files = run(whole)
    assert not torch.equal(whole.network.model.bn1.running_mean, before)
    run(again, torch.load(files[0], weights_only=True))
    assert same(weights(again), weights(whole))
    assert same(again.best, whole.best)
    assert "bn1.running_mean" in whole.best


class SteppedRows(MadeUpRows):
    """Training batches of the given numbers of rows, the rest of 8 being of weight 0."""

    def __init__(self, sizes):
        super().__init__(num_rows=8)
        self.sizes, self.num_steps = sizes, len(sizes)

    def epoch(self, epoch, *, num_workers, pin):
        for size in self.sizes:
            weight = torch.cat([torch.ones(size), torch.zeros(8 - size)])
            yield torch.from_numpy(self.images), torch.from_numpy(self.targets), weight, torch.arange(8)


@pytest.mark.parametrize(("sizes", "learns"), [([8, 8], True), ([7, 3], False), ([0], False)])
def test_batch_norm_learns_from_no_step_of_few_rows_or_of_padding(sizes, learns):
    """Kind of fault: statistics that a model serves with are made of a worker's last few rows, or of rows that only
    fill up."""
    torch.manual_seed(0)
    model = build_model("resnet18", CLASSES, image_size=32)
    before = model.bn1.running_mean.clone()
    rows = {"train": SteppedRows(sizes), "validation": MadeUpRows(seed=1)}
    loop = TrainingLoop(
        Network(model, NETWORK, DistributedContext()),
        phases=[ResolvedPhase(1, "all", 0, 0, 1e-3, 1e-3, trains_batch_norm=True)],
        train=TrainSection(),
        open_batches=lambda split, _: (rows[split], 0),
    )
    next(loop.epochs(None))
    assert torch.equal(model.bn1.running_mean, before) != learns
    assert (loop.network.model.fc.weight != 0).any()
    loop.network.model.train()
    assert all(norm.training for norm in loop.steps.norms), "later steps learn again"


def gradients_of_first_step(rows):
    """The model before its first step, with the gradients of the mean cross-entropy over all rows, by torch alone."""
    torch.manual_seed(0)
    model = build_model("cnn2", CLASSES, image_size=SIZE).train()
    values = (torch.from_numpy(rows.images) / 255 - 0.5) / 0.2
    torch.nn.functional.cross_entropy(model(values), torch.from_numpy(rows.targets)).backward()
    return model


def test_the_gradients_norm_is_what_autograd_gives_for_the_batch():
    """Oracle: the gradient of the mean cross-entropy over all parameters, written out, before the first step."""
    rows = MadeUpRows(num_rows=16)
    loop = make_loop([phase(epochs=1)], rows={"train": rows, "validation": rows, "temperature": rows})
    model = gradients_of_first_step(rows)
    expected = torch.cat([one.grad.flatten() for one in model.parameters()]).norm().item()
    [measured] = loop.epochs(None)
    assert measured["grad_norm"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("limit", [0.05, 1000.0])
def test_gradients_are_clipped_to_the_norm_that_is_asked_for(limit):
    """Oracle: one step of plain SGD without momentum, by torch alone. The reported norm is the one before clipping."""
    rows = MadeUpRows(num_rows=16)
    settings = TrainSection(
        optimizer="sgd", momentum=0.0, weight_decay=0.0, warmup_ratio=0.0, clip_grad_norm=limit, metric="loss"
    )
    rate = 0.01
    model = gradients_of_first_step(rows)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit).item()
    torch.optim.SGD(model.parameters(), lr=rate).step()
    loop = make_loop(
        [phase(epochs=1, head_lr=rate, backbone_lr=rate)],
        train=settings,
        rows={"train": rows, "validation": rows, "temperature": rows},
    )
    [measured] = loop.epochs(None)
    assert measured["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert norm > 0.05, "there is something to clip"
    for name, value in model.named_parameters():
        torch.testing.assert_close(loop.network.model.get_parameter(name), value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [1, 5, 15, 100])
def test_passes_that_add_up_train_like_one(size):
    """Kind of fault: the mean of a pass stands for the mean of the batch, and uneven passes weigh the same.

    Oracle for the memory: no forward pass sees more rows than ``train.device_batch_size``.
    """
    found, seen = [], []
    for given in (None, size):
        loop = make_loop(
            [phase(epochs=2)],
            train=TrainSection(device_batch_size=given, label_smoothing=0.1),
            class_weights=torch.tensor([0.2, 1.0, 3.0]),
        )
        last = loop.network.chain.head
        if given:
            last.register_forward_pre_hook(
                lambda module, args: seen.append(len(args[0])) if torch.is_grad_enabled() else None
            )
        measured = list(loop.epochs(None))
        found.append(([one["train_loss"] for one in measured], [one["grad_norm"] for one in measured], weights(loop)))
    (losses, norms, left), (same_losses, same_norms, right) = found
    assert max(seen) <= size
    assert losses == pytest.approx(same_losses, rel=1e-4)
    assert norms == pytest.approx(same_norms, rel=1e-3)
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, rtol=1e-3, atol=1e-4)


def test_batch_norm_sees_each_pass_alone():
    """Oracle: torch alone. Thirty-one rows in passes of 11, 10 and 10: outputs, gradients and running statistics."""
    rows = MadeUpRows(num_rows=31, batch_size=31)
    settings = TrainSection(
        optimizer="sgd", momentum=0.0, weight_decay=0.0, warmup_ratio=0.0, device_batch_size=15, metric="loss"
    )
    torch.manual_seed(0)
    network = Network(build_model("resnet18", CLASSES, image_size=SIZE), NETWORK, DistributedContext())
    expected = copy.deepcopy(network.model)
    loop = TrainingLoop(
        network,
        phases=[ResolvedPhase(1, "all", 0, 0, 0.01, 0.01, trains_batch_norm=True)],
        train=settings,
        open_batches=lambda split, _: (rows, 0),
    )
    [measured] = loop.epochs(None)
    order = np.random.default_rng(1).permutation(31)
    images = ((torch.from_numpy(rows.images[order]) / 255) - 0.5) / 0.2
    targets, losses = torch.from_numpy(rows.targets[order]), []
    expected.train()
    for some, wanted in zip(images.split([11, 10, 10]), targets.split([11, 10, 10]), strict=True):
        losses.append(torch.nn.functional.cross_entropy(expected(some), wanted, reduction="sum"))
        (losses[-1] / 31).backward()
    torch.optim.SGD(expected.parameters(), lr=0.01).step()
    assert measured["train_loss"] == pytest.approx(sum(losses).item() / 31, rel=1e-4)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(network.model.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_passes_too_small_for_batch_norm_are_refused():
    """Kind of fault: statistics of a handful of rows; what is a little more than one pass is taken in two halves."""
    trains = [ResolvedPhase(1, "all", 0, 0, 1, 1, trains_batch_norm=True)]
    numbers = {"batch_sizes": [64], "num_workers": 1, "num_rows": 100}
    with pytest.raises(
        ConfigError, match=r"train\.device_batch_size = 12 leaves as few as 6 rows.*raise it to 16, or train the head"
    ):
        check_batch_size(trains, **numbers, device_batch_size=12)
    check_batch_size(trains, **numbers, device_batch_size=15)
    check_batch_size([phase()], **numbers, device_batch_size=1)
    with pytest.raises(ConfigError, match="raise it to 13"):
        check_batch_size(trains, **numbers | {"batch_sizes": [8, 13]}, device_batch_size=12)
    check_batch_size(trains, **numbers | {"batch_sizes": [8, 12]}, device_batch_size=12)  # which splits nothing
    with pytest.raises(ConfigError, match="raise it to 9"):  # nine rows are one step, of more than was asked for
        check_batch_size(trains, batch_sizes=[8], num_workers=1, num_rows=9, device_batch_size=8)
    assert min(rows // num_passes(rows, 15) for rows in range(8, 500)) >= 8


def test_the_learning_rate_of_an_epoch_is_its_highest():
    """Of ten epochs of three steps: a tenth of the steps rise to the head's rate, then a cosine falls to nothing."""
    rates = [row["lr"] for row in make_loop([phase(epochs=10)]).epochs(None)]
    assert max(rates) == rates[1] == pytest.approx(1e-2)
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert 0 < rates[-1] < 1e-3


def test_waiting_for_data_is_counted_and_training_is_not():
    class SlowRows(MadeUpRows):
        def epoch(self, epoch, **options):
            for batch in super().epoch(epoch, **options):
                time.sleep(0.05)
                yield batch

    rows = {"train": SlowRows(), "validation": MadeUpRows(seed=1), "temperature": MadeUpRows(seed=2)}
    [measured] = make_loop([phase(epochs=1)], rows=rows).epochs(None)
    assert 0.15 <= measured["data_wait_seconds"] < measured["train_seconds"]


def test_the_optimizer_state_of_an_older_version_is_refused_in_words():
    """Kind of fault: torch's own error about parameter groups, without a word of what to do."""
    loop = make_loop([phase(epochs=2)])
    next(loop.epochs(None))
    state = loop.state()
    group = state["optimizer"]["param_groups"][0]
    group["params"].pop()
    with pytest.raises(ModelError, match=r"leave train\.resume or tune\.resume out"):
        next(make_loop([phase(epochs=2)]).epochs(state))
