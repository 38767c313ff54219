"""Evaluation and the training it shares with the experts, against loops written out."""

import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from drawing import torch_generator
from tolerances import SINGLE, SINGLE_LOOPS, TRAINING
from torch import Tensor, nn
from torch.nn import functional

from satm.config import CandidateOptions, EvaluateOptions, parse
from satm.data import Augmentation, Preprocessor, Split, fit_whitening
from satm.errors import RunError, UsageError
from satm.evaluation.networks import Score, Task, evaluate, search, settled, stacked, train, train_together
from satm.networks import build
from satm.networks.training import TEST_BATCH, TrainingImages, measure, soft_cross_entropy
from satm.params import flatten
from satm.run.stopping import Stop, on_signals
from satm.seeds import derive_seed, make_generator
from satm.stages.checkpoint import NetworkState

NETWORK = {"network": "convnet", "depth": 1, "width": 4}
AXES = ("noise", 1, "mtt", 0, "convnet", 0, 0)
NOTHING = Augmentation("", "image")


def bright(count: int, seed: int) -> TrainingImages:
    """Images of three classes that differ in where they are bright."""
    generator = torch_generator(seed)
    labels = torch.arange(count) % 3
    images = 0.5 * torch.randn(count, 1, 8, 8, generator=generator)
    for index, label in enumerate(labels):
        images[index, 0, 2 * int(label) : 2 * int(label) + 2] += 2
    return TrainingImages(images, labels)


def task(
    options: EvaluateOptions, synthetic: TrainingImages | None = None, step_size: float = 0.1, **network: Any
) -> Task:
    data = bright(9, 0) if synthetic is None else synthetic
    return Task(data, step_size, {**NETWORK, **network}, 3, options, Augmentation("crop_flip", "image"))


def score(synthetic: TrainingImages | None = None, step_size: float = 0.1, axes: Any = AXES, **options: Any) -> Score:
    chosen = EvaluateOptions(**{"epochs": 6, "decay_epoch": 3, "batch_size": 4, "augment": False, **options})
    return evaluate(task(chosen, synthetic, step_size), bright(60, 1), [axes])[0]


def twin(lr: float, momentum: float, decay: float, epochs: int, decay_epoch: int) -> tuple[float, float]:
    """The protocol written out: SGD, the rate a tenth and the momentum new after `decay_epoch` epochs."""
    module = build(NETWORK, 1, 3, 8, derive_seed("network", *AXES))
    generator = make_generator("evaluate", *AXES)
    data, real = bright(9, 0), bright(60, 1)
    buffers = [torch.zeros_like(parameter) for parameter in module.parameters()]
    for epoch in range(epochs):
        if epoch == decay_epoch:
            lr, buffers = lr / 10, [torch.zeros_like(buffer) for buffer in buffers]
        for chosen in torch.randperm(9, generator=generator).split(4):
            loss = functional.cross_entropy(module(data.images[chosen]), data.labels[chosen])
            gradients = torch.autograd.grad(loss, list(module.parameters()))
            with torch.no_grad():
                for parameter, gradient, buffer in zip(module.parameters(), gradients, buffers, strict=True):
                    buffer.mul_(momentum).add_(gradient + decay * parameter)
                    parameter -= lr * buffer
    with torch.no_grad():
        logits = module(real.images)
    return float((logits.argmax(1) == real.labels).float().mean()), float(functional.cross_entropy(logits, real.labels))


def test_the_protocol_is_the_loop_written_out() -> None:
    found = score(momentum=0.8, weight_decay=0.01)
    accuracy, loss = twin(0.1, 0.8, 0.01, 6, 3)
    assert found.accuracy == pytest.approx(accuracy, abs=SINGLE)
    assert found.loss == pytest.approx(loss, rel=SINGLE_LOOPS)
    assert score(momentum=0.8, weight_decay=0.01, decay_epoch=6).loss != pytest.approx(loss, rel=SINGLE_LOOPS)


def steps(epochs: int) -> tuple[nn.Module, TrainingImages, list[Tensor]]:
    """The network of `AXES`, the synthetic set, and the mini-batches that its training draws."""
    generator = make_generator("evaluate", *AXES)
    batches = [chosen for _ in range(epochs) for chosen in torch.randperm(9, generator=generator).split(4)]
    return build(NETWORK, 1, 3, 8, derive_seed("network", *AXES)), bright(9, 0), batches


def test_adam_is_the_loop_written_out() -> None:
    module, data, batches = steps(4)
    held = [(parameter, torch.zeros_like(parameter), torch.zeros_like(parameter)) for parameter in module.parameters()]
    for count, chosen in enumerate(batches, 1):
        loss = functional.cross_entropy(module(data.images[chosen]), data.labels[chosen])
        gradients = torch.autograd.grad(loss, [parameter for parameter, _, _ in held])
        with torch.no_grad():
            for (parameter, first, second), slope in zip(held, gradients, strict=True):
                gradient = slope + 0.01 * parameter
                first.mul_(0.9).add_(0.1 * gradient)
                second.mul_(0.999).add_(0.001 * gradient.square())
                step = (first / (1 - 0.9**count)) / ((second / (1 - 0.999**count)).sqrt() + 1e-8)
                parameter -= 0.003 * step
    options: dict[str, Any] = {"optimiser": "adam", "lr": 0.003, "weight_decay": 0.01, "epochs": 4}
    found = score(**options, decay_epoch=None)
    assert found.loss == pytest.approx(measure(module, bright(60, 1))[1], rel=SINGLE_LOOPS)
    assert score(**options, decay_epoch=None, momentum=0.1).loss == found.loss  # momentum is SGD's
    assert score(**options, decay_epoch=2).loss != pytest.approx(found.loss, rel=SINGLE_LOOPS)


def test_the_step_size_decays_only_where_asked() -> None:
    never = score(decay_epoch=None)
    assert never.loss == score(decay_epoch=99).loss
    assert never.loss == pytest.approx(twin(0.1, 0.9, 5e-4, 6, 6)[1], rel=SINGLE_LOOPS)
    assert never.loss != score().loss


def test_a_flat_minimum_is_sam_written_out() -> None:
    module, data, batches = steps(6)
    parameters = list(module.parameters())
    for chosen in batches:
        slopes = []
        for step in (0.05, 0.0):
            loss = functional.cross_entropy(module(data.images[chosen]), data.labels[chosen])
            slopes.append(torch.autograd.grad(loss, parameters))
            norm = sum(slope.square().sum() for slope in slopes[0]) ** 0.5
            with torch.no_grad():
                for parameter, first, last in zip(parameters, slopes[0], slopes[-1], strict=True):
                    if step:
                        parameter += step * first / norm
                    else:
                        parameter -= 0.05 * first / norm
                        parameter -= 0.1 * last
    options: dict[str, Any] = {"momentum": 0.0, "weight_decay": 0.0, "decay_epoch": None}
    found = score(**options, flat_rho=0.05)
    assert found.loss == pytest.approx(measure(module, bright(60, 1))[1], rel=SINGLE_LOOPS)
    assert score(**options).loss != pytest.approx(found.loss, rel=SINGLE_LOOPS)


def test_a_cosine_is_the_loop_written_out() -> None:
    module, data, batches = steps(4)
    parameters = list(module.parameters())
    for count, chosen in enumerate(batches):
        rate = 0.1 * 0.5 * (1 + math.cos(math.pi * (count // 3) / 4))
        loss = functional.cross_entropy(module(data.images[chosen]), data.labels[chosen])
        with torch.no_grad():
            for parameter, slope in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter -= rate * slope
    options: dict[str, Any] = {"momentum": 0.0, "weight_decay": 0.0, "epochs": 4}
    found = score(**options, schedule="cosine", decay_epoch=2)
    assert found.loss == pytest.approx(measure(module, bright(60, 1))[1], rel=SINGLE_LOOPS)
    assert found.loss == score(**options, schedule="cosine", decay_epoch=None).loss
    assert score(**options, decay_epoch=2).loss != pytest.approx(found.loss, rel=SINGLE_LOOPS)


def doubled(data: TrainingImages) -> TrainingImages:
    labels = data.labels.double() if data.labels.is_floating_point() else data.labels
    return TrainingImages(data.images.double(), labels)


class Doubled(Task):
    """Trains in float64."""

    def fresh(self, axes: Any) -> nn.Module:
        return super().fresh(axes).double()


SEVERAL = [(*AXES[:-2], repeat, 0) for repeat in range(3)]


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_networks_trained_at_once_are_those_trained_alone(norm: str, optimiser: str, soft: bool) -> None:
    data = bright(9, 0)
    if soft:
        labels = torch.randn(9, 3, generator=torch_generator(3))
        data = TrainingImages(data.images, labels)
    options = EvaluateOptions(epochs=5, decay_epoch=3, batch_size=4, optimiser=optimiser, lr=0.01)
    work = Doubled(**vars(task(options, doubled(data), norm=norm)))
    together = train_together(work, SEVERAL)
    for module, axes in zip(together, SEVERAL, strict=True):
        alone = train(work, axes)
        for name, held in alone.state_dict().items():
            torch.testing.assert_close(module.state_dict()[name], held, rtol=TRAINING, atol=TRAINING, msg=name)
    assert not torch.allclose(flatten(together[0]), flatten(together[1]))


def test_one_option_decides_whether_they_are_trained_at_once() -> None:
    base = EvaluateOptions(epochs=3, decay_epoch=2, batch_size=4)
    found = {}
    for together in ("auto", "no", "yes"):
        chosen = base.model_copy(update={"together": together})
        found[together] = [one.loss for one in evaluate(task(chosen), bright(60, 1), SEVERAL)]
        at_once = stacked(task(chosen), torch.device("cpu")), stacked(task(chosen), torch.device("cuda"))
        assert at_once == {"auto": (False, True), "no": (False, False), "yes": (True, True)}[together]
    assert found["auto"] == found["no"] == pytest.approx(found["yes"], rel=SINGLE_LOOPS) and len(set(found["no"])) == 3
    assert found["yes"] == pytest.approx(found["no"], rel=SINGLE_LOOPS)


def test_what_excludes_each_other_is_refused() -> None:
    with pytest.raises(UsageError, match=r"together 'yes' does not go with flat_rho 0\.1"):
        parse(EvaluateOptions, {"together": "yes", "flat_rho": 0.1}, "evaluate")
    with pytest.raises(UsageError, match="lr 'searched' needs a search first"):
        _ = task(EvaluateOptions(lr="searched")).rate


def test_the_searched_step_size_is_the_best_on_the_given_images() -> None:
    grid = (1e-6, 0.1, 1e6)
    options = EvaluateOptions(epochs=20, decay_epoch=None, batch_size=4, augment=False, lr_grid=grid)
    held = bright(30, 2)
    accuracies = [
        evaluate(task(options.model_copy(update={"lr": one})), held, [(*AXES, "search")])[0].accuracy for one in grid
    ]
    assert accuracies.index(max(accuracies)) == 1 and accuracies.count(max(accuracies)) == 1
    assert search(task(options), "lr", grid, held, AXES).rate == 0.1
    wrong = TrainingImages(held.images, (held.labels + 1) % 3)
    assert search(task(options), "lr", grid, wrong, AXES).rate != 0.1


def whole_and(count: int, size: int, steps: int) -> EvaluateOptions:
    """Return options of `steps` steps, for `count` images in batches of `size`, with a constant step size."""
    assert count % size  # the last batch of a pass is smaller
    return EvaluateOptions(train_steps=(steps,), decay_epoch=None, batch_size=size, lr=0.05)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 9])
def test_steps_are_counted_through_passes_that_may_be_cut(steps: int, together: bool) -> None:
    work = task(whole_and(9, 4, steps), norm="batch")
    assert len(work.synthetic) == 9 and sum(work.passes) == steps and set(work.passes[:-1]) <= {3}
    several = [(*AXES, repeat) for repeat in range(2)]
    found = train_together(work, several) if together else [train(work, one) for one in several]
    for module, names in zip(found, several, strict=True):
        expected, generator = work.fresh(names), make_generator("evaluate", *names)
        optimiser, done = torch.optim.SGD(expected.parameters(), 0.05, momentum=0.9, weight_decay=5e-4), 0
        while done < steps:
            for chosen in torch.randperm(9, generator=generator).split(4):
                images, labels = work.synthetic.batch(chosen)
                images = work.augmentation.apply(
                    images, work.augmentation.draw(generator, len(images), images.shape[-1])
                )
                optimiser.zero_grad()
                functional.cross_entropy(expected.train()(images), labels).backward()
                optimiser.step()
                if (done := done + 1) == steps:
                    break
        for one, other in zip(module.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=SINGLE_LOOPS, atol=SINGLE_LOOPS)


def test_the_number_of_steps_is_the_best_on_the_given_images() -> None:
    counts, held = (1, 60), bright(30, 2)
    options = EvaluateOptions(train_steps=counts, decay_epoch=None, batch_size=4, augment=False, lr=0.1)
    accuracies = [
        evaluate(task(options.model_copy(update={"train_steps": (one,)})), held, [(*AXES, "search")])[0].accuracy
        for one in counts
    ]
    assert accuracies[0] < accuracies[1]
    assert (
        settled(task(options), lambda: held, AXES).passes
        == task(options.model_copy(update={"train_steps": (60,)})).passes
    )
    wrong = TrainingImages(held.images, (held.labels + 1) % 3)
    assert sum(settled(task(options), lambda: wrong, AXES).passes) == 1
    with pytest.raises(UsageError, match="several train_steps need a choice first"):
        _ = task(options).passes


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"train_steps": [5], "epochs": 7}, r"train_steps \[5\] and epochs 7 both say how long .*set epochs to 1000"),
        ({"train_steps": [5], "schedule": "cosine", "epochs": 2}, "and epochs 2 both"),
        ({"train_steps": [0]}, "greater than or equal to 1"),
        ({"train_steps": [5, 6], "lr": "searched", "decay_epoch": None}, "two searches; fix one of them"),
    ],
)
def test_steps_and_epochs_exclude_each_other(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        parse(EvaluateOptions, options, "evaluate")
    with pytest.raises(UsageError, match=r"train_steps .* has no effect with an architecture search"):
        parse(CandidateOptions, {"train_steps": [5]}, "search")


class Stops(Exception):
    """A kill."""


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("stop", [1, 3, 5])
@pytest.mark.parametrize("together", [False, True])
def test_a_killed_training_goes_on_to_the_same_bytes(tmp_path: Path, optimiser: str, stop: int, together: bool) -> None:
    options = EvaluateOptions(epochs=6, decay_epoch=3, batch_size=4, optimiser=optimiser, lr=0.01)
    work, several = task(options, norm="batch"), [(*AXES, repeat) for repeat in range(3)]
    epochs: list[int] = []

    class Stopping(NetworkState):
        def save(self, epoch: int, *rest: Any) -> None:
            super().save(epoch, *rest)
            epochs.append(epoch)
            if len(epochs) == stop:
                raise Stops

    def trained(kept: NetworkState | None) -> list[nn.Module]:
        return train_together(work, several, kept) if together else [train(work, AXES, kept)]

    with pytest.raises(Stops):
        trained(Stopping(tmp_path, {"name": "it"}, every=0))
    again = trained(Stopping(tmp_path, {"name": "it"}, every=0))
    assert epochs == list(range(1, 7)), "only the epochs that were left"
    for one, other in zip(again, trained(None), strict=True):
        assert all(torch.equal(held, other.state_dict()[name]) for name, held in one.state_dict().items())


def test_the_state_of_another_network_and_a_broken_one_are_dropped(tmp_path: Path) -> None:
    work = task(EvaluateOptions(epochs=2, decay_epoch=None, batch_size=4))

    def begins(name: str) -> int:
        found = NetworkState(tmp_path, {"name": name}).load()
        return 0 if found is None else found[0]

    assert begins("it") == 0
    train(work, AXES, NetworkState(tmp_path, {"name": "it"}, every=0))
    assert (begins("it"), begins("other")) == (2, 0)
    for left, path in ((1, tmp_path / "network-1.safetensors"), (0, tmp_path / "network-0.safetensors")):
        path.write_bytes(path.read_bytes()[:50])
        assert begins("it") == left


def test_a_stop_comes_after_the_epoch_and_keeps_it(tmp_path: Path) -> None:
    work = task(EvaluateOptions(epochs=4, decay_epoch=None, batch_size=4))
    whole = train(work, AXES).state_dict()
    for epochs in (1, 2, 3):
        with on_signals(), pytest.raises(Stop, match="SIGTERM"):
            os.kill(os.getpid(), signal.SIGTERM)
            train(work, AXES, NetworkState(tmp_path, {"name": "it"}))
        kept = NetworkState(tmp_path, {"name": "it"}).load()
        assert kept is not None and kept[0] == epochs
    again = train(work, AXES, NetworkState(tmp_path, {"name": "it"})).state_dict()
    assert all(torch.equal(again[name], held) for name, held in whole.items())


def test_a_stop_cuts_off_a_training_that_is_not_kept() -> None:
    with on_signals(), pytest.raises(Stop, match="SIGTERM"):
        os.kill(os.getpid(), signal.SIGTERM)
        train(task(EvaluateOptions(epochs=1, decay_epoch=None)), AXES)


def test_it_learns_and_a_seed_names_a_network() -> None:
    found = score(epochs=40, decay_epoch=30)
    assert found.accuracy > 0.9 and found.loss < 0.5
    assert found.seconds > 0 and found.peak_memory_bytes > 0
    again, other = score(), score(axes=(*AXES[:-2], 1, 0))
    assert (score().accuracy, score().loss) == (again.accuracy, again.loss)
    assert other.loss != again.loss


def test_the_step_size_is_the_learned_one_or_a_number() -> None:
    assert score(step_size=0.1).loss == score(step_size=7.0, lr=0.1).loss
    assert score(step_size=0.1).loss != score(step_size=0.01).loss


@pytest.mark.parametrize("step_size", [0.0, -0.1, float("nan")])
def test_a_step_size_that_is_not_positive_is_refused(step_size: float) -> None:
    with pytest.raises(UsageError, match=r"positive step size, the synthetic set has .*; set lr to a number"):
        score(step_size=step_size)
    assert score(step_size=step_size, lr=0.1).accuracy > 0


def test_augmentation_is_an_option() -> None:
    assert score(augment=True).loss != score(augment=False).loss


def test_a_training_that_diverges_is_a_result() -> None:
    found = score(step_size=1e6)
    assert math.isnan(found.accuracy) and not math.isfinite(found.loss)  # never the accuracy of giving one class always


def test_soft_labels_are_logits() -> None:
    hard = bright(9, 0)
    logits = 1e4 * functional.one_hot(hard.labels, 3).float()
    assert score(replace(hard, labels=logits)).loss == pytest.approx(score().loss, rel=SINGLE)
    outputs = torch.randn(4, 3, generator=torch_generator(0))
    probabilities = torch.tensor([[0.2, 0.3, 0.5]]).expand(4, 3)
    expected = -(probabilities * outputs.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(soft_cross_entropy(outputs, probabilities.log()), expected)


class Fixed(nn.Module):
    """A network that gives back its images' first numbers."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :3]


def test_measuring_goes_through_all_batches() -> None:
    generator = torch_generator(0)
    count = 2 * TEST_BATCH["cpu"] + 7
    images, labels = torch.randn(count, 1, 2, 2, generator=generator), torch.randint(3, (count,), generator=generator)
    accuracy, loss = measure(Fixed(), TrainingImages(images, labels))
    assert accuracy == pytest.approx(float((images.flatten(1)[:, :3].argmax(1) == labels).float().mean()))
    assert loss == pytest.approx(float(functional.cross_entropy(images.flatten(1)[:, :3], labels)), rel=SINGLE)


def test_measuring_leaves_batch_statistics_alone() -> None:
    module = build({**NETWORK, "norm": "batch"}, 1, 3, 8, seed=0)
    before = [buffer.clone() for buffer in module.buffers()]
    measure(module, bright(9, 0))
    assert all(torch.equal(one, other) for one, other in zip(before, module.buffers(), strict=True))
    assert torch.isfinite(flatten(module)).all()


@pytest.mark.parametrize("whitened", [True, False])
def test_real_images_come_in_the_space_of_training(whitened: bool) -> None:
    generator = torch_generator(0)
    images = torch.randint(256, (12, 1, 4, 4), generator=generator, dtype=torch.uint8)
    preprocessor = Preprocessor((0.4,), (0.2,), fit_whitening(images) if whitened else None)
    data = TrainingImages.of(Split(images, torch.arange(12)), preprocessor, torch.device("cpu"))
    chosen = torch.tensor([3, 1, 11])
    found, labels = data.batch(chosen)
    torch.testing.assert_close(found, preprocessor.apply(images)[chosen])
    assert labels.tolist() == [3, 1, 11] and len(data) == 12
    assert data.images.dtype == (torch.float32 if whitened else torch.uint8)


def test_a_search_leaves_out_what_diverges() -> None:
    real, options = bright(30, 1), {"epochs": 4, "decay_epoch": None, "lr": "searched"}
    chosen = task(EvaluateOptions(lr_grid=(1e6, 0.1), **options).model_copy(update={"lr": 0.1}))
    assert search(chosen, "lr", (1e6, 0.1), real, ("a",)).rate == 0.1
    with pytest.raises(RunError, match=r"every step size of lr_grid, 1e\+06, 1e\+07; set lr_grid to smaller"):
        search(chosen, "lr", (1e6, 1e7), real, ("a",))
    with pytest.raises(RunError, match="every number of train_steps, 3, 4; set lr to a smaller number"):
        counted = {"epochs": 1000, "train_steps": (3,), "lr": 1e7}
        search(
            replace(chosen, options=chosen.options.model_copy(update=counted)),
            "train_steps",
            [(3,), (4,)],
            real,
            ("a",),
        )
