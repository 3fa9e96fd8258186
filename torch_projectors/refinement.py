"""Local refinement of poses: every image against slices of one map, all images of a batch at once.

An image is modelled as y = a c F(pose) + noise: F the map's slice, c the CTF, a an amplitude, and noise of inverse
variance w per frequency. Each particle descends by Levenberg and Marquardt's method, with a damping of its own, in
five unknowns: a turn, applied as `rotations @ from_vectors(turn)`, and a move of the shift in pixels. Amplitudes are
eliminated in closed form. Coarse frequencies come first, and cost little: all is cropped to the cutoff's box.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Callable, NamedTuple, Optional

import torch
from torch import Tensor

from . import realspace
from .checks import (
    check_device,
    check_interpolation,
    check_number,
    check_oversampling,
    check_spectrum,
    check_tensor,
    check_values,
    finite,
    real_dtype,
    shown,
)
from .fourier import forward_project
from .rotations import from_vectors, to_vectors
from .spectrum import cropped, frequencies, halved, stored_shape

# Rows of the Gram matrix that a step is made of: the image, its slice, and the slice's derivatives by turn and move.
IMAGE, SLICE, ROWS = 0, 1, 7
# Derivatives are differences over this part of a voxel of the map's spectrum, at the cutoff.
DIFFERENCE = 0.5
# Radius of a particle, in boxes: times an angle, how far a turn moves its rim.
EXTENT = 0.35
# No step moves phases at the cutoff by more radians than this.
LONGEST_STEP = 1.5
# Bytes of intermediate results: what caches hold, or what keeps a device busy.
WORKING_SET = {"cpu": 2**24, "other": 2**29}
# Particles that go through the stages together, by those that are worked on at once: what calls cost is shared.
KEPT = 16


class Refinement(NamedTuple):
    """Poses of P particles after a refinement.

    - rotations: `[P, 3, 3]`; shifts: `[P, 2]` in pixels, (x, y).
    - scale: `[P]`, amplitude of the map in the image.
    - score_before, score_after: `[P]`, normalised correlation of image and slice within the finest cutoff, weighted;
      NaN for images that are not finite.
    - steps: `[P]`, how many were tried.
    - converged: `[P]`, whether at the finest cutoff no step above tolerance was left.
    """

    rotations: Tensor
    shifts: Tensor
    scale: Tensor
    score_before: Tensor
    score_after: Tensor
    steps: Tensor
    converged: Tensor


def refine(
    images: Tensor,
    volume: Tensor,
    rotations: Tensor,
    shifts: Tensor,
    *,
    ctf: Optional[Tensor] = None,
    weights: Optional[Tensor] = None,
    progress: Optional[Callable[[int], None]] = None,
    **options: Any,
) -> Refinement:
    """Poses of images that agree better with a map: `Refiner(volume, **options)`, called once."""
    return Refiner(volume, **options)(images, rotations, shifts, ctf=ctf, weights=weights, progress=progress)


class Refiner:
    """A map, made ready once, against which any number of batches of images are refined.

    Args:
        volume: the map, float32 or float64 `[N, N, N]`; or its half spectrum, by `realspace.prepare` with the same
            interpolation and oversampling.
        cutoffs: frequencies in cycles per box, rising, that successive stages go up to. By default from one at which
            errors of `degrees` and `pixels` are within reach to the finest, in steps of a factor of two or less.
        finest: cutoff of the last stage, where cutoffs are not given; Nyquist's by default.
        degrees, pixels: errors to expect, as standard deviations along each axis; they choose the default cutoffs.
        interpolation, oversampling: of the map's spectrum, as for `realspace.project`.
        scale: amplitude of the map in the images; None to fit each image's.
        prior_degrees, prior_pixels: standard deviations, along each axis, of a Gaussian prior around the start; None
            for none. It is weighed by `weights`: without them, the mean power of an image within the finest cutoff
            stands for that of its noise.
        steps: most steps that a particle tries at each cutoff.
        tolerance: in radians; a particle is done with a cutoff when its step would move no phase by more.
        working_set: bytes of intermediate results, beside the images that came.
    """

    def __init__(
        self,
        volume: Tensor,
        *,
        cutoffs: Optional[Sequence[float]] = None,
        finest: Optional[float] = None,
        degrees: float = 4.0,
        pixels: float = 2.0,
        interpolation: str = "linear",
        oversampling: float = 2.0,
        scale: Optional[float] = None,
        prior_degrees: Optional[float] = None,
        prior_pixels: Optional[float] = None,
        steps: int = 12,
        tolerance: float = 0.05,
        working_set: Optional[float] = None,
    ) -> None:
        check_interpolation(interpolation)
        self.interpolation = interpolation
        self.oversampling = check_oversampling(oversampling)
        self.spectrum = self._prepared(volume)
        self.cutoffs = None if cutoffs is None else _rising(cutoffs)
        if cutoffs is not None and finest is not None:
            raise ValueError(f"finest: expected without cutoffs, got {finest!r} with {cutoffs!r}")
        self.finest = math.inf if finest is None else _positive("finest", finest)
        self.degrees, self.pixels = _positive("degrees", degrees), _positive("pixels", pixels)
        self.scale = None if scale is None else _positive("scale", scale)
        self.prior_degrees = None if prior_degrees is None else _positive("prior_degrees", prior_degrees)
        self.prior_pixels = None if prior_pixels is None else _positive("prior_pixels", prior_pixels)
        self.steps = math.ceil(_positive("steps", steps))
        self.tolerance = _positive("tolerance", tolerance)
        if working_set is None:
            working_set = WORKING_SET.get(self.spectrum.device.type, WORKING_SET["other"])
        self.working_set = _positive("working_set", working_set)

    def _prepared(self, volume: Tensor) -> Tensor:
        is_spectrum = isinstance(volume, Tensor) and volume.is_complex()
        if is_spectrum:
            check_spectrum("volume", volume)
        else:
            check_tensor("volume", volume, (torch.float32, torch.float64))
        side = volume.shape[0] if volume.dim() else 0
        box = (side,) * 3
        if side < 2 or tuple(volume.shape) != (stored_shape(box) if is_spectrum else box):
            raise ValueError(
                "volume: expected a map [N, N, N] or its half spectrum [M, M, M//2+1], "
                f"got shape {tuple(volume.shape)}"
            )
        volume = volume.detach()
        return volume if is_spectrum else realspace.prepare(volume, 3, self.interpolation, self.oversampling)

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        rotations: Tensor,
        shifts: Tensor,
        *,
        ctf: Optional[Tensor] = None,
        weights: Optional[Tensor] = None,
        progress: Optional[Callable[[int], None]] = None,
    ) -> Refinement:
        """Poses of images that agree better with the map. Particles do not affect each other.

        Args:
            images: half spectra `[P, N, N//2+1]`, in the precision of the map, of square images of its field of view:
                `realspace.to_spectrum(x, 2)`. Pixels may be of another size than the map's.
            rotations: `[P, 3, 3]`, shifts: `[P, 2]` in pixels, (x, y): where to start, as for `forward_project`.
            ctf: real, of the images' shape or one that broadcasts to it.
            weights: inverse variance of the noise of a component: `[shells]` for |k| = 0, 1, ..., in between by linear
                interpolation, whose last value holds from there on; or real `[..., N, N//2+1]` that broadcasts to the
                images. White by default.
            progress: called with how many particles were finished since the last call.
        """
        size = self._check(images, rotations, shifts, ctf, weights)
        dtype = real_dtype(images)
        stages = [Stage(c, size, self.oversampling, images) for c in self.schedule(size)]
        # Images within the finest cutoff are kept through all stages.
        count = max(1, int(KEPT * self.working_set / stages[-1].bytes))
        parts = [slice(i, i + count) for i in range(0, max(1, len(images)), count)]
        results = []
        for part in parts:
            spectra, filters = whitened(images[part], _part(ctf, part), _part(weights, part), stages[-1])
            results.append(
                self._refined(spectra, filters, rotations[part].to(dtype), shifts[part].to(dtype), stages)
            )
            if progress is not None:
                progress(len(spectra))
        return Refinement(*[torch.cat(x) for x in zip(*results)])

    def _refined(
        self, spectra: Tensor, filters: Tensor, rotations: Tensor, shifts: Tensor, stages: Sequence[Stage]
    ) -> Refinement:
        start, shifts = shifts, shifts.clone()
        rest = (torch.eye(3).to(shifts).repeat(len(shifts), 1, 1), torch.zeros_like(shifts))
        before = self.gram(stages[-1], spectra, filters, rotations, shifts, derivatives=False)
        turned = rest[0].clone()
        tried = torch.zeros(len(shifts), dtype=torch.long, device=shifts.device)
        for stage in stages:
            data = (
                _cropped(spectra, stage.size),
                _cropped(filters.movedim(-1, 0), stage.size).movedim(0, -1),
            )
            gram = self.gram(stage, *data, rotations @ turned, shifts)
            value = self.objective(gram, turned, shifts - start)
            damping = torch.full_like(value, 1e-2)
            converged = torch.zeros_like(value, dtype=torch.bool)
            active = torch.arange(len(value), device=value.device)
            for i in range(self.steps + 1):
                moved = shifts[active] - start[active]
                step = self.step(gram[active], damping[active], turned[active], moved)
                length = stage.phase(step)
                converged[active] = length <= self.tolerance
                # All that a device is waited for: who is left.
                left = (length > self.tolerance).nonzero().squeeze(1)
                active, step, length = active[left], step[left], length[left]
                if i == self.steps or not len(active):
                    break
                step = step * (LONGEST_STEP / length).clamp(max=1)[:, None]
                tried[active] += 1
                new_turned = turned[active] @ from_vectors(step[:, :3])
                new_shifts = shifts[active] + step[:, 3:]
                new_gram = self.gram(stage, *data, rotations[active] @ new_turned, new_shifts, active)
                new_value = self.objective(new_gram, new_turned, new_shifts - start[active])
                better = no_worse(new_value, value[active])
                old = damping[active]
                damping[active] = torch.where(better, 0.1 * old, (10 * old).clamp(min=1e-2)).clamp(min=1e-7)
                for x, new in (
                    (turned, new_turned),
                    (shifts, new_shifts),
                    (gram, new_gram),
                    (value, new_value),
                ):
                    x[active] = torch.where(better.view(-1, *[1] * (x.dim() - 1)), new, x[active])
        # A coarser stage may have led astray.
        worse = ~no_worse(value, self.objective(before, *rest))
        turned[worse], gram[worse, :2, :2] = rest[0][worse], before[worse]
        shifts = torch.where(worse[:, None], start, shifts)
        poses = (rotations @ turned, shifts)
        return Refinement(*poses, self.amplitude(gram), score(before), score(gram), tried, converged & ~worse)

    def gram(
        self,
        stage: Stage,
        spectra: Tensor,
        filters: Tensor,
        rotations: Tensor,
        shifts: Tensor,
        which: Optional[Tensor] = None,
        derivatives: bool = True,
    ) -> Tensor:
        """Inner products `[P, ROWS, ROWS]` of image, slice and its derivatives: all that the objective depends on.

        spectra, filters: as `whitened` makes them, of which `which` are taken; rotations and shifts are of those.
        """
        count = max(1, int(self.working_set / stage.bytes))
        grams = []
        for i in range(0, max(1, len(shifts)), count):
            part = slice(i, i + count)
            chosen = part if which is None else which[part]
            rows = self.rows(
                stage,
                spectra[chosen],
                filters[chosen],
                rotations[part],
                shifts[part],
                derivatives,
            )
            flat = torch.view_as_real(rows).flatten(2)
            grams.append(flat @ flat.mT)
        return torch.cat(grams)

    def rows(
        self,
        stage: Stage,
        spectra: Tensor,
        filters: Tensor,
        rotations: Tensor,
        shifts: Tensor,
        derivatives: bool = True,
    ) -> Tensor:
        """Image, slice and its derivatives by turn and move, complex `[P, ROWS, n, n//2+1]`, in the particle's frame.

        The shift is undone in the image, where it takes one factor, rather than done in all the others.
        """
        rows = spectra.new_empty(len(shifts), ROWS if derivatives else 2, *spectra.shape[1:])
        x, y = [torch.polar(torch.ones_like(a), a) for a in stage.angles(shifts)]
        torch.mul(spectra, y[:, :, None], out=rows[:, IMAGE])
        rows[:, IMAGE] *= x[:, None, :]
        poses = rotations[:, None]
        if derivatives:
            poses = poses @ stage.turns
        slices = forward_project(
            self.spectrum,
            poses.flatten(0, 1),
            output_shape=(stage.size, stage.size),
            interpolation=self.interpolation,
            oversampling=self.oversampling,
            fourier_radius_cutoff=stage.cutoff,
        ).unflatten(0, poses.shape[:2])
        real, slices = torch.view_as_real(rows), torch.view_as_real(slices)
        if derivatives:
            slices[:, 1:] -= slices[:, :1]
            slices[:, 1:] /= stage.angle
        last = slices.shape[1] + 1
        torch.mul(slices.flatten(-2), filters.flatten(-2)[:, None], out=real[:, SLICE:last].flatten(-2))
        if derivatives:
            for row, table in zip((5, 6), stage.moves):
                torch.mul(rows[:, SLICE], table, out=rows[:, row])
        return rows

    def objective(self, gram: Tensor, turned: Tensor, moved: Tensor) -> Tensor:
        """Minus the log likelihood, less a constant, of the best amplitude, and that of the prior: `[P]`."""
        overlap, power = gram[:, IMAGE, SLICE], gram[:, SLICE, SLICE]
        if self.scale is None:
            # An image and its negative are no equally good fits.
            value = -overlap * overlap.abs() / _nonzero(power)
        else:
            value = self.scale * (self.scale * power - 2 * overlap)
        for offset, precision in self.prior(turned, moved):
            value = value + 0.5 * precision * offset.square().sum(-1)
        return value

    def step(self, gram: Tensor, damping: Tensor, turned: Tensor, moved: Tensor) -> Tensor:
        """The damped step `[P, 5]`, a turn and a move: zero where there is none."""
        scale = self.amplitude(gram)[:, None]
        size = scale.abs()
        across, power = gram[:, SLICE, 2:], _nonzero(gram[:, SLICE, SLICE])[:, None]
        force = size * (gram[:, IMAGE, 2:] - scale * across)
        curvature = gram[:, 2:, 2:]
        if self.scale is None:
            curvature = curvature - across[:, :, None] * (across / power)[:, None, :]
        curvature = size[:, :, None].square() * curvature
        diagonal = curvature.diagonal(dim1=1, dim2=2).clone()
        for offset, precision in self.prior(turned, moved):
            part = slice(0, 3) if offset.shape[-1] == 3 else slice(3, 5)
            force[:, part] -= 0.5 * precision * offset
            diagonal[:, part] += 0.5 * precision
        # In units in which the diagonal is 1.
        unit = _nonzero(diagonal).rsqrt()
        curvature = unit[:, :, None] * curvature * unit[:, None, :]
        curvature.diagonal(dim1=1, dim2=2).copy_(1 + damping[:, None])
        step = unit * torch.linalg.solve_ex(curvature, unit * force)[0]
        return torch.where(step.isfinite().all(-1, keepdim=True), step, 0)

    def amplitude(self, gram: Tensor) -> Tensor:
        if self.scale is not None:
            return torch.full_like(gram[:, 0, 0], self.scale)
        return gram[:, IMAGE, SLICE] / _nonzero(gram[:, SLICE, SLICE])

    def prior(self, turned: Tensor, moved: Tensor) -> Iterator[tuple[Tensor, float]]:
        """Of each part of a pose that has one: how far it is from the start, `[P, 3]` or `[P, 2]`, and the inverse
        variance of that, per square radian or per square pixel.
        """
        if self.prior_degrees is not None:
            yield to_vectors(turned), math.radians(self.prior_degrees) ** -2
        if self.prior_pixels is not None:
            yield moved, self.prior_pixels**-2

    def schedule(self, size: int) -> list[float]:
        """The cutoffs for images of a size."""
        if self.cutoffs is not None:
            if self.cutoffs[-1] > size / 2:
                raise ValueError(
                    f"cutoffs: expected at most half the images' {size} pixels, got {self.cutoffs[-1]:g}"
                )
            return self.cutoffs
        finest = min(self.finest, size / 2, round(self.spectrum.shape[0] / self.oversampling) / 2)
        error = math.hypot(EXTENT * math.radians(self.degrees), self.pixels / size)
        first = min(finest, max(4.0, 0.25 / error))
        count = math.ceil(math.log2(finest / first))
        return [first * (finest / first) ** (i / max(1, count)) for i in range(count)] + [finest]

    def _check(
        self,
        images: Tensor,
        rotations: Tensor,
        shifts: Tensor,
        ctf: Optional[Tensor],
        weights: Optional[Tensor],
    ) -> int:
        check_spectrum("images", images)
        device, size = self.spectrum.device, images.shape[-2] if images.dim() == 3 else 0
        if size < 2 or images.shape[2] != size // 2 + 1:
            raise ValueError(
                "images: expected half spectra [P, N, N//2+1] of square images, "
                f"got shape {tuple(images.shape)}"
            )
        if images.dtype != self.spectrum.dtype:
            raise TypeError(f"images: expected the map's {self.spectrum.dtype}, got {images.dtype}")
        check_device("images", images, device)
        for name, pose, shape in (("rotations", rotations, (3, 3)), ("shifts", shifts, (2,))):
            check_tensor(name, pose, (torch.float32, torch.float64))
            if tuple(pose.shape) != (len(images), *shape):
                raise ValueError(
                    f"{name}: expected {[len(images), *shape]}, one for each image, got {list(pose.shape)}"
                )
            check_device(name, pose, device)
            check_values((finite, name, pose))
        for name, x in (("ctf", ctf), ("weights", weights)):
            if x is None:
                continue
            check_tensor(name, x, (torch.float32, torch.float64))
            check_device(name, x, device)
            if name == "weights" and x.dim() == 1 and len(x):
                continue
            lead = [1] * (3 - x.dim()) + list(x.shape)
            if x.dim() > 3 or any(n not in (1, m) for n, m in zip(lead, images.shape)):
                raise ValueError(
                    f"{name}: expected a shape that broadcasts to the images' {list(images.shape)}, "
                    f"got {list(x.shape)}"
                )
        if weights is not None and not bool((weights >= 0).all()):
            raise ValueError(f"weights: expected values >= 0, got {shown(weights)} with others")
        return size


class Stage:
    """A cutoff, in the smallest box that holds it, of odd size: then no frequency there is its own alias.

    size: of the box; cutoff: in cycles per box; bytes: of a particle's rows.
    """

    def __init__(self, cutoff: float, image_size: int, oversampling: float, like: Tensor) -> None:
        self.cutoff = float(cutoff)
        self.size = min(2 * math.floor(cutoff) + 1, image_size)
        self.image_size = image_size
        shape = stored_shape((self.size, self.size))
        self.bytes = ROWS * math.prod(shape) * like.element_size()
        real = {"dtype": real_dtype(like), "device": like.device}
        y, x = [
            2 * math.pi / image_size * torch.from_numpy(k).to(**real) for k in frequencies((self.size,) * 2)
        ]
        self.angular = (x, y)  # per pixel
        # None, and one about each axis that moves samples at the cutoff by the difference.
        self.angle = DIFFERENCE / (oversampling * self.cutoff)
        self.turns = from_vectors(torch.eye(4, 3).roll(1, 0).to(x) * self.angle)
        self.moves = (torch.complex(torch.zeros_like(x), -x), torch.complex(torch.zeros_like(y), -y)[:, None])

    def angles(self, shifts: Tensor) -> list[Tensor]:
        """Phases that undo shifts, along x and along y."""
        return [s[:, None] * k for s, k in zip(shifts.unbind(-1), self.angular)]

    def phase(self, step: Tensor) -> Tensor:
        """The radians by which steps `[P, 5]` move phases at the cutoff, about: `[P]`."""
        turn, move = EXTENT * step[:, :3], step[:, 3:] / self.image_size
        return 2 * math.pi * self.cutoff * (turn.square().sum(-1) + move.square().sum(-1)).sqrt()


def whitened(
    images: Tensor, ctf: Optional[Tensor], weights: Optional[Tensor], stage: Stage
) -> tuple[Tensor, Tensor]:
    """Images and CTFs within a cutoff, times the square root of their weight, in which each Friedel pair counts once.

    Returns `[P, n, n//2+1]`, and real `[P, n, n//2+1, 2]`: CTFs for real and imaginary parts.
    """
    size, image_size = stage.size, stage.image_size
    spectra = _cropped(images, size)
    like = stage.angular[0]
    y, x = [torch.from_numpy(k).to(like.device, like.dtype) for k in frequencies((size, size))]
    radius = (y[:, None].square() + x.square()).sqrt()
    once = halved((radius <= stage.cutoff).to(radius), size)
    once[0, 0] = 0  # the mean tells nothing of the pose
    if weights is None:
        power = (once * spectra.abs().square()).sum((1, 2)) / once.sum()
        counted, weight = once > 0, once / _nonzero(power)[:, None, None]
    else:
        weight = once * _weights_at(weights.to(radius), radius, size, image_size)
        counted = weight > 0
    white = weight.sqrt().expand(spectra.shape)
    filters = white
    if ctf is not None:
        filters = white * _full(ctf, image_size, size).to(white)
    # What has no weight need not be finite.
    spectra, filters = [torch.where(counted, x, 0) for x in (spectra * white, filters)]
    return spectra, filters[..., None].expand(*spectra.shape, 2).contiguous()


def _weights_at(weights: Tensor, radius: Tensor, size: int, image_size: int) -> Tensor:
    """Weights of the frequencies of a box: from a curve by their radius, or cropped from those of the image."""
    if weights.dim() != 1:
        return _full(weights, image_size, size)
    last = len(weights) - 1
    at = radius.clamp(max=last)
    return torch.lerp(weights[at.long()], weights[(at.long() + 1).clamp(max=last)], at.frac())


def _full(x: Tensor, image_size: int, size: int) -> Tensor:
    """What broadcasts to half spectra `[..., N, N//2+1]`, cropped as they are."""
    return _cropped(x.expand(*x.shape[:-2], image_size, image_size // 2 + 1), size)


def _cropped(x: Tensor, size: int) -> Tensor:
    return cropped(x, (x.shape[-2],) * 2, (size, size))


def no_worse(new: Tensor, old: Tensor) -> Tensor:
    """Whether objectives did not rise, but for rounding: near the best pose gradients are more exact than values."""
    return new <= old + 4 * torch.finfo(old.dtype).eps * old.abs()


def score(gram: Tensor) -> Tensor:
    """Normalised correlation of image and slice."""
    return gram[:, IMAGE, SLICE] / _nonzero(gram[:, IMAGE, IMAGE] * gram[:, SLICE, SLICE]).sqrt()


def _nonzero(x: Tensor) -> Tensor:
    return torch.where(x == 0, 1, x)


def _part(x: Optional[Tensor], part: slice) -> Optional[Tensor]:
    """Of what goes with images, what goes with some of them."""
    return x[part] if x is not None and x.dim() == 3 and len(x) > 1 else x


def _positive(name: str, value: Any) -> float:
    value = check_number(name, value, "a number > 0")
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a finite number > 0, got {value}")
    return float(value)


def _rising(cutoffs: Any) -> list[float]:
    values = [check_number("cutoffs", c, "numbers >= 1") for c in cutoffs]
    if not values or values[0] < 1 or any(b <= a for a, b in zip(values, values[1:])):
        raise ValueError(f"cutoffs: expected rising numbers >= 1, got {values}")
    return [float(c) for c in values]
