"""Projects a volume that is a single point, as main.c does, from Python without PyTorch or any other package."""

from __future__ import annotations

import cmath
import ctypes
import math
import sys

from torch_projectors_cpu.library import Problem, call, level, version

N = 8
COLUMNS = N // 2 + 1


def turned(dot: float) -> complex:
    """A point's spectrum at frequency k turns by 2 pi k r / N."""
    return cmath.exp(-2j * math.pi * dot / N)


def array(numbers: list[complex]) -> ctypes.Array:
    """Complex numbers as pairs, real part first."""
    return (ctypes.c_double * (2 * len(numbers)))(*(part for z in numbers for part in (z.real, z.imag)))


def main() -> int:
    frequencies = [i - N if i > N // 2 else i for i in range(N)]
    point, shift = (2, 1, -3), (ctypes.c_double * 2)(0.25, -1.5)
    # A quarter turn about z, rows contiguous: (x, y, z) becomes (-y, x, z).
    quarter_turn = (ctypes.c_double * 9)(0, -1, 0, 1, 0, 0, 0, 0, 1)
    volume = array(
        [
            turned(x * point[0] + y * point[1] + z * point[2])
            for z in frequencies
            for y in frequencies
            for x in range(COLUMNS)
        ]
    )
    image = array([0] * N * COLUMNS)
    problem = Problem(
        size=ctypes.sizeof(Problem),
        scalar=1,  # float64
        interpolation=1,  # linear
        volume_dims=3,
        image_dims=2,
        volume_shape=(N, N, N),
        image_shape=(N, N),
        oversampling=1,
        cutoff=N / 2,
        batch=1,
        poses=1,
        rotations=ctypes.addressof(quarter_turn),
        shifts=ctypes.addressof(shift),
    )
    call("forward_project", problem, ctypes.addressof(volume), ctypes.addressof(image))

    # The image is of the point as the inverse turn leaves it, seen along z, and shifted.
    seen = (point[1] + shift[0], -point[0] + shift[1])
    error = 0.0
    for row, y in enumerate(frequencies):
        for x in range(COLUMNS):
            expected = turned(x * seen[0] + y * seen[1]) if math.hypot(x, y) <= N / 2 else 0
            i = 2 * (row * COLUMNS + x)
            error = max(error, abs(complex(image[i], image[i + 1]) - expected))
    assert "torch" not in sys.modules
    print(f"torch-projectors-cpu {version()} ({level()}): point within {error:.1e}")
    return 0 if error < 1e-14 else 1


if __name__ == "__main__":
    sys.exit(main())
