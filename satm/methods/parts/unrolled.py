"""Unrolled training: a fresh network is trained on the synthetic set, and its loss is measured on real images.

Shapes: n synthetic images of C x H x W, K classes, P parameters, N inner steps, B real images.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from satm.config.methods import UnrolledOptions
from satm.methods.parts.boosting import Stage, stage
from satm.methods.parts.linear import Linear
from satm.methods.parts.method import Method
from satm.methods.parts.problem import Problem, Synthetic
from satm.methods.parts.window import Window, Windows
from satm.methods.recipe import Recipe
from satm.networks.training import soft_cross_entropy
from satm.outer import NO_STATE, MethodState, OuterGradient
from satm.unroll import Adam, Hypergradient, Rule, Scheduled, descent_rule, hypergradient
from satm.unroll.batches import mini_batches
from satm.unroll.objectives import real_loss

OptionsT = TypeVar("OptionsT", bound=UnrolledOptions, covariant=True)


class UnrolledTraining(Method[OptionsT]):
    """Train a fresh network on the synthetic set and follow the gradient of its loss on real images.

    An iteration draws fresh weights, a batch of real images, mini-batches and augmentation. These draws depend on the
    cell and the iteration alone, not on the window, so that windows can be compared on the same draws. A pass over the
    real images uses each at most once; a smaller last batch is dropped.

    A recipe's code is `Windows`: the differentiated steps of each iteration.
    """

    def __init__(self, recipe: Recipe, options: OptionsT, problem: Problem) -> None:
        super().__init__(recipe, options, problem)
        if options.basis:
            self.problem = replace(problem, ipc=options.basis_images or problem.ipc)
            self.parameterisation = Linear(options.basis, problem.data.classes)
        self.windows: Windows = recipe.code
        self.rule = inner_rule(options)
        self.batch = min(options.real_batch, len(problem.data.train))
        self.per_pass = len(problem.data.train) // self.batch

    def start(self) -> Synthetic:
        """Return the set before the first iteration, each image scaled to `init_norm`."""
        synthetic, options = super().start(), self.options
        if options.init == "gaussian" or options.init_norm is None:
            return synthetic
        images = synthetic.images
        unit = functional.normalize(images.flatten(1), dim=1).view_as(images)
        return replace(synthetic, images=options.init_norm * unit)

    def rates(self) -> dict[str, float]:
        """Return the outer learning rate of each tensor that is learned."""
        rates = super().rates()
        if self.options.basis:
            return {"basis": rates.pop("images"), "weights": self.options.lr_weights, **rates}
        return rates

    def gradient(self, synthetic: Synthetic, iteration: int, state: MethodState = NO_STATE) -> OuterGradient:
        """Return the hypergradient through the window, clipped or normalised."""
        options = self.options
        here = self._stage(iteration, len(synthetic.images))
        if here is not None and here.begins:
            state = NO_STATE
        generator = self.problem.generator("iteration", iteration)
        inner = self.unroll(synthetic, iteration, state, self.real_images(iteration, generator), generator)
        outer = OuterGradient(
            inner.loss,
            inner.images,
            inner.labels if options.labels == "learned" else None,
            torch.zeros_like(inner.step_size) if options.step_size_gradient == "fixed" else inner.step_size,
            state=NO_STATE if self.windows.remember is None else self.windows.remember(self, state, inner.loss),
            share=None if here is None else here.share,
            restart=here is not None and here.begins,
        )
        return limit(outer, state, options)

    def real_images(self, iteration: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return `[B, C, H, W]` real images of an iteration, augmented, and their labels."""
        problem, augmentation = self.problem, self.problem.augmentation
        order = torch.randperm(len(problem.real), generator=problem.generator("pass", iteration // self.per_pass))
        images, labels = problem.real.batch(order.split(self.batch)[iteration % self.per_pass].to(problem.device))
        if self.options.augment_real:
            images = augmentation.apply(images, augmentation.draw(generator, len(images), images.shape[-1]))
        return images, labels

    def unroll(
        self,
        synthetic: Synthetic,
        iteration: int,
        state: MethodState,
        real: tuple[Tensor, Tensor],
        generator: torch.Generator,
    ) -> Hypergradient:
        """Return the hypergradient, through the window of an iteration, of the loss on real images and their labels.

        Images are `[B, C, H, W]` in the space of training, labels `[B]` classes; the generator, on the CPU, draws
        mini-batches and augmentation of all N steps.
        """
        options, problem, (images, labels) = self.options, self.problem, real
        module, like = problem.module, synthetic.images
        window = self.window(iteration, state)
        batches = self._batches(len(like), iteration, generator)
        count = len(like) if batches is None else len(batches[0])
        augment = problem.augmentation.per_step(generator, [count] * options.inner_steps, like.shape[-1], like.device)
        return hypergradient(
            module,
            like,
            synthetic.labels,
            synthetic.step_size,
            real_loss(module, images.to(like), labels),
            steps=window.end,
            last=window.length,
            start=problem.fresh_weights("student", iteration).to(like),
            rule=self.rule,
            loss=soft_cross_entropy,
            batches=None if batches is None else batches[: window.end],
            augment=augment if options.augment else None,
            step_size_gradient="first-order" if options.step_size_gradient == "first-order" else "exact",
            engine=options.engine,
            precision=options.precision,
        )

    def window(self, iteration: int, state: MethodState) -> Window:
        """Return the differentiated steps of an iteration."""
        return self.windows.place(self, iteration, state)

    def _stage(self, iteration: int, count: int) -> Stage | None:
        """Return the stage of an iteration; None if all images are learned at once."""
        options, problem = self.options, self.problem
        if options.blocks == 1:
            return None
        here = stage(iteration, options.iterations, count, problem.ipc, options.blocks, options.boost)
        return replace(here, trained=here.trained.to(problem.device), share=here.share.to(problem.device))

    def _batches(self, count: int, iteration: int, generator: torch.Generator) -> Sequence[Tensor] | None:
        """Return the mini-batch of each of the N inner steps, from the blocks so far; None: all images in each."""
        options, here = self.options, self._stage(iteration, count)
        among = count if here is None else len(here.trained)
        batches = mini_batches(among, options.batch_size, options.inner_steps, generator, self.problem.device)
        if here is None:
            return batches
        return [here.trained] * options.inner_steps if batches is None else [here.trained[part] for part in batches]


def inner_rule(options: UnrolledOptions) -> Rule:
    """Return the inner optimiser with its schedule."""
    rule: Rule = Adam()
    if options.inner == "sgd":
        rule = descent_rule(options.inner_momentum, options.inner_weight_decay)
    return Scheduled(rule, options.milestones, options.factor) if options.milestones else rule


def limit(outer: OuterGradient, state: MethodState, options: UnrolledOptions) -> OuterGradient:
    """Return the outer gradient with that of the images clipped at a multiple of its average norm, or scaled to norm 1.

    The previous iteration's state holds the average `norm`.

    Source: RaT-BPTT C.5 and its public code: the average includes the present norm, and the gradient of learned labels
        is not changed.
    """
    norm = outer.images.norm()
    if options.normalise:
        return replace(outer, images=outer.images / norm.clamp_min(torch.finfo(norm.dtype).tiny), norm=norm)
    if options.clip is None:
        return outer
    before = state.get("norm", norm)
    average = options.clip_decay * before + (1 - options.clip_decay) * norm
    cap = options.clip * average
    images = torch.where(norm > cap, cap / norm, 1.0) * outer.images
    return replace(outer, images=images, norm=norm, state={**outer.state, "norm": average})
