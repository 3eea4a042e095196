"""Two-stage inference (section 3.4): from acquired contrasts and a prior to the missing contrasts.

:class:`TwoStageInferer` is the sampler alone: start, steps, guidance, unrolling. It takes a denoiser
(:mod:`apt_monai.networks.denoisers`) and knows no network, no prediction type, no codebook.

Steps are counted as the paper counts them: step t of T is noise level t, step 0 is the clean image. MONAI's schedulers
count from 0, so that step t is their timestep t - 1.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from monai.inferers import DiffusionInferer
from monai.networks.schedulers import DDPMScheduler, NoiseSchedules
from monai.networks.schedulers.ddpm import DDPMPredictionType

from apt_monai.files import key_digest
from apt_monai.networks.denoisers import Conditions, Denoiser, Prediction

NextStep = Literal["forward", "ddim", "ddpm"]


def slice_seed(seed: int, subject: str, slice_index: int) -> int:
    """The seed of one slice's noise: the same for any batch size, order, worker count or rank count.

    Example::

        >>> slice_seed(0, "BraTS2021_00000", 70) == slice_seed(0, "BraTS2021_00000", 70)
        True
        >>> slice_seed(0, "BraTS2021_00000", 70) == slice_seed(0, "BraTS2021_00000", 71)
        False
    """
    return int.from_bytes(key_digest(seed, subject, slice_index)[:8], "little") >> 1  # a generator takes 63 bits


def step_pairs(start_step: int, sampling_steps: int) -> list[tuple[int, int]]:
    """The (step, next step) pairs of a schedule that goes from ``start_step`` to 0 in equal strides.

    Example::

        >>> step_pairs(400, 20)[:2], step_pairs(400, 20)[-1]
        ([(400, 380), (380, 360)], (20, 0))
    """
    steps = [round(start_step * (sampling_steps - i) / sampling_steps) for i in range(sampling_steps + 1)]
    return list(zip(steps[:-1], steps[1:], strict=True))


@contextmanager
def _frozen(network: torch.nn.Module) -> Iterator[None]:
    """No weight gradients meanwhile: guidance differentiates with respect to the image alone."""
    trainable = [p for p in network.parameters() if p.requires_grad]
    training = [m for m in network.modules() if m.training]
    network.eval()
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)
        for m in training:
            m.training = True


def noise_scheduler(
    num_train_timesteps: int = 1000, schedule: str = "cosine", prediction_type: str = "epsilon"
) -> DDPMScheduler:
    """MONAI's noise schedule over T training steps, its names checked.

    Args:
        num_train_timesteps: T.
        schedule: the name of one of MONAI's schedules of β.
        prediction_type: what the network predicts: ``"epsilon"``, ``"sample"`` or ``"v_prediction"``.

    Raises:
        ValueError: an unknown name.

    Example::

        >>> noise_scheduler(1000, "cosine").num_train_timesteps
        1000
    """
    _check_choice("schedule", schedule, NoiseSchedules.names)
    _check_choice("prediction_type", prediction_type, tuple(str(kind) for kind in DDPMPredictionType))
    return DDPMScheduler(num_train_timesteps, schedule=schedule, prediction_type=prediction_type)


class TwoStageInferer(DiffusionInferer):
    """The paper's two-stage sampler, batched over slices.

    Stage 1 noises [acquired contrasts, priors] to step M and returns to step 0 in S strides; stage 2 re-noises the
    result to a step near zero N times and averages the predictions. Each prediction is guided by the acquired
    contrasts (Eq. 4), which are then set to what was acquired.

    Calling the inferer is MONAI's training forward pass, with a denoiser in the place of a network.

    Args:
        scheduler: the noise schedule over T training steps.
        start_step: M, 1 to T.
        sampling_steps: S, 1 to M.
        unroll_step: the step of stage 2, 1 to M; without stage 2 it does not matter.
        unroll_iterations: N; 0 leaves stage 2 out.
        unroll_weight: w of Eq. 5, in [0, 1].
        guidance_scale: α of Eq. 4; its gradient goes through the network to x_t. 0 leaves the guidance, and the
            backward pass, out: what remains is that the acquired channels are set to y, at about a third of the cost.
            (A gradient on x̂0 itself would be the same: it is zero in the missing channels.)
        squared: take Eq. 4's norm squared, as printed. Its gradient grows with the residual and with the number of
            pixels, and at α = 20 it diverges; the default is the norm itself, as in the authors' code.
        next_step: how x̂0 becomes the next x_t: ``"forward"``: fresh forward noise (the authors' code);
            ``"ddim"``: the noise that x_t implies; ``"ddpm"``: a draw from the posterior q(x_next | x_t, x̂0).

    Raises:
        ValueError: a value outside its range; the message names it.

    Example::

        >>> scheduler = DDPMScheduler(1000, schedule="cosine")
        >>> TwoStageInferer(scheduler).passes
        71
        >>> from apt_monai.networks.denoisers import PublishedDenoiser
        >>> class Network(torch.nn.Module):
        ...     def forward(self, x, timesteps, context):
        ...         return 0.1 * x
        >>> denoiser = PublishedDenoiser(Network(), scheduler)
        >>> inferer = TwoStageInferer(scheduler, sampling_steps=4, unroll_iterations=2)
        >>> y = Conditions(torch.zeros(1, 2, 8, 8), torch.tensor([[True, False]]), context=torch.ones(1, 16))
        >>> result = inferer.synthesize(denoiser, y, seeds=[0]).clean
        >>> result.shape, bool((result[:, 0] == y.acquired[:, 0]).all())
        (torch.Size([1, 2, 8, 8]), True)
    """

    scheduler: DDPMScheduler

    def __init__(
        self,
        scheduler: DDPMScheduler,
        start_step: int = 400,
        sampling_steps: int = 20,
        unroll_step: int = 40,
        unroll_iterations: int = 50,
        unroll_weight: float = 0.5,
        guidance_scale: float = 20.0,
        squared: bool = False,
        next_step: NextStep = "forward",
    ) -> None:
        super().__init__(scheduler)
        total = scheduler.num_train_timesteps
        _check("start_step (M)", start_step, 1, total, "the scheduler's number of training steps T")
        _check("sampling_steps (S)", sampling_steps, 1, start_step, "start_step (M)")
        _check("unroll_iterations (N)", unroll_iterations, 0)
        if unroll_iterations:
            _check("unroll_step", unroll_step, 1, start_step, "start_step (M)")
        _check("unroll_weight (w)", unroll_weight, 0, 1)
        _check("guidance_scale (α)", guidance_scale, 0)
        _check_choice("next_step", next_step, get_args(NextStep))
        self.start_step = start_step
        self.sampling_steps = sampling_steps
        self.unroll_step = unroll_step
        self.unroll_iterations = unroll_iterations
        self.unroll_weight = unroll_weight
        self.guidance_scale = guidance_scale
        self.squared = squared
        self.next_step = next_step

    def __call__(
        self,
        inputs: torch.Tensor,
        diffusion_model: Denoiser,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        condition: Conditions,
    ) -> torch.Tensor:
        """MONAI's training forward pass: what the denoiser's loss is taken on.

        Args:
            inputs: x_0, ``(B, C, H, W)``.
            diffusion_model: the denoiser.
            noise: ε, ``(B, C, H, W)``.
            timesteps: ``(B,)``, MONAI's: 0 to T - 1.
            condition: the :class:`~apt_monai.networks.denoisers.Conditions`.
        """
        return diffusion_model(self.scheduler.add_noise(inputs, noise, timesteps), timesteps + 1, condition).output

    def synthesize(
        self,
        denoiser: Denoiser,
        conditions: Conditions,
        seeds: Sequence[int],
        progress: Callable[[int], Any] | None = None,
    ) -> Prediction:
        """Synthesise the missing contrasts of a batch of slices.

        Args:
            denoiser: what predicts x̂0.
            conditions: what is known of the B slices; ``available`` may differ from slice to slice. Without a prior,
                the missing channels start as pure noise.
            seeds: B, one seed a slice (:func:`slice_seed`).
            progress: called with 1 after each network pass.

        Returns:
            ``clean``: ``(B, C, H, W)`` in [-1, 1], the acquired channels those of ``conditions``, bit for bit;
            ``scale``: of the last pass, where the denoiser says how far off it may be.

        Raises:
            ValueError: not one seed a slice.
        """
        acquired, prior = conditions.acquired, conditions.prior
        if len(seeds) != len(acquired):
            raise ValueError(f"there are {len(seeds)} seeds for {len(acquired)} slices: each slice needs its own")
        known = conditions.available[:, :, None, None]  # (B, C, 1, 1)
        y = torch.where(known, acquired, torch.zeros_like(acquired))
        generators = [torch.Generator(acquired.device).manual_seed(s) for s in seeds]

        def draw() -> torch.Tensor:
            return torch.stack(
                [torch.randn(acquired.shape[1:], generator=g, device=acquired.device) for g in generators]
            )

        scale: torch.Tensor | None = None

        def predict(x_t: torch.Tensor, t: int) -> torch.Tensor:
            nonlocal scale
            x0, scale = self._predict_clean(x_t, t, y, known, denoiser, conditions)
            if progress is not None:
                progress(1)
            return x0

        with _frozen(denoiser), torch.no_grad():
            # Stage 1: prior-informed transformation
            start = y if prior is None else torch.where(known, acquired, prior)
            noise = draw()
            x_t = self._forward(start, noise, self.start_step)
            if prior is None:
                x_t = torch.where(known, x_t, noise)
            x0 = self._denoise(x_t, step_pairs(self.start_step, self.sampling_steps), predict, draw)

            # Stage 2: iterative unrolling
            if self.unroll_iterations:
                for _ in range(self.unroll_iterations):
                    new = predict(self._forward(x0, draw(), self.unroll_step), self.unroll_step)
                    # Eq. 5: x̂0 <- (1 - w) x̂0 + w x̂0_new
                    x0 = (1 - self.unroll_weight) * x0 + self.unroll_weight * new
                remaining = [p for p in step_pairs(self.start_step, self.sampling_steps) if p[0] < self.unroll_step]
                if remaining:
                    x0 = self._denoise(self._forward(x0, draw(), remaining[0][0]), remaining, predict, draw)
        x0 = torch.where(known, acquired, x0.clamp(-1, 1))
        return Prediction(x0, x0, scale)

    @property
    def settings(self) -> dict[str, Any]:
        """The sampler's arguments beside the scheduler, as JSON can hold them: all that its results depend on."""
        return {name: getattr(self, name) for name in self.setting_names()}

    @classmethod
    def from_settings(cls, scheduler: DDPMScheduler, settings: Mapping[str, Any]) -> TwoStageInferer:
        """The sampler of some :attr:`settings`; those that are not named have their defaults.

        Raises:
            ValueError: an unknown setting, or a value outside its range; the message names it.
        """
        unknown = sorted(set(settings) - set(cls.setting_names()))
        if unknown:
            raise ValueError(f"sampling has no {', '.join(unknown)}: valid are {', '.join(cls.setting_names())}")
        return cls(scheduler, **settings)

    @classmethod
    def setting_names(cls) -> list[str]:
        """What :attr:`settings` are called."""
        return [name for name in inspect.signature(cls).parameters if name != "scheduler"]

    @property
    def passes(self) -> int:
        """How often :meth:`synthesize` calls the network: 71 with the paper's settings."""
        stage_2 = [p for p in step_pairs(self.start_step, self.sampling_steps) if p[0] < self.unroll_step]
        return self.sampling_steps + (self.unroll_iterations + len(stage_2) if self.unroll_iterations else 0)

    def _alpha_bar(self, t: int) -> torch.Tensor:
        """ᾱ at step t; 1 at step 0."""
        return self.scheduler.alphas_cumprod[t - 1] if t > 0 else torch.ones(())

    def _forward(self, x0: torch.Tensor, noise: torch.Tensor, t: int) -> torch.Tensor:
        """The forward diffusion q(x_t | x0)."""
        return self.scheduler.add_noise(x0, noise, torch.full((len(x0),), t - 1, device=x0.device))

    def _denoise(
        self,
        x_t: torch.Tensor,
        pairs: Sequence[tuple[int, int]],
        predict: Callable[[torch.Tensor, int], torch.Tensor],
        draw: Callable[[], torch.Tensor],
    ) -> torch.Tensor:
        """Follow the (t, next t) pairs down to step 0."""
        x0 = x_t
        for t, t_next in pairs:
            x0 = predict(x_t, t)
            if t_next > 0:
                x_t = self._step(x0, x_t, t, t_next, draw)
        return x0

    def _step(
        self, x0: torch.Tensor, x_t: torch.Tensor, t: int, t_next: int, draw: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        """From x̂0 to the next x_t."""
        if self.next_step == "forward":
            return self._forward(x0, draw(), t_next)
        a_t, a_s = self._alpha_bar(t).to(x0), self._alpha_bar(t_next).to(x0)
        if self.next_step == "ddim":
            # DDIM (Song et al. 2021, Eq. 12 with σ = 0); ε is the one that x_t and the guided x̂0 imply
            eps = (x_t - a_t.sqrt() * x0) / (1 - a_t).sqrt()
            return a_s.sqrt() * x0 + (1 - a_s).sqrt() * eps
        # DDPM (Ho et al. 2020, Eq. 7) over the stride t -> s: α_ts = ᾱ_t / ᾱ_s
        a_ts = a_t / a_s
        mean = (a_s.sqrt() * (1 - a_ts) * x0 + a_ts.sqrt() * (1 - a_s) * x_t) / (1 - a_t)
        variance = (1 - a_s) * (1 - a_ts) / (1 - a_t)
        return mean + variance.sqrt() * draw()

    def _predict_clean(
        self,
        x_t: torch.Tensor,
        t: int,
        y: torch.Tensor,
        known: torch.Tensor,
        denoiser: Denoiser,
        conditions: Conditions,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x̂0 from x_t: predicted, clipped, guided (Eq. 4), and the acquired channels set to y; and its scale."""
        guided = self.guidance_scale > 0
        with torch.set_grad_enabled(guided):
            x_t = x_t.detach().requires_grad_(guided)
            steps = torch.full((len(x_t),), t, device=x_t.device)
            prediction = denoiser(x_t, steps, conditions)
            x0 = prediction.clean.clamp(-1, 1)
            if guided:
                # Eq. 4: x̂0 <- x̂0 - α ∇_{x_t} ‖A(x̂0) - y‖, one norm a slice
                residual = (torch.where(known, x0, torch.zeros_like(x0)) - y).flatten(1).norm(dim=1)
                loss = residual.square() if self.squared else residual
                (gradient,) = torch.autograd.grad(loss.sum(), x_t)
                x0 = x0.detach() - self.guidance_scale * gradient
        return torch.where(known, y, x0), prediction.scale


def _check(name: str, value: float, low: float, high: float | None = None, high_name: str = "") -> None:
    if not value >= low or (high is not None and not value <= high):  # so that NaN is refused too
        upper = "" if high is None else f" to {high}" + (f", {high_name}" if high_name else "")
        raise ValueError(f"{name} is {value}: valid is {low}{upper or ' or more'}")


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}: valid are {', '.join(choices)}")
