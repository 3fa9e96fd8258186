// Separable interpolation: taps at floor(p + rounding) + first, first + 1, ... along each axis, and their weights as
// polynomials of t = p - floor(p + rounding).
#pragma once

#include "grid.h"

namespace torch_projectors {

// Row `power` holds, for every tap, the coefficient of t^power.
struct Nearest {
  static constexpr int code = 0, taps = 1, first = 0, degree = 0;
  static constexpr double rounding = 0.5;
  static constexpr bool negative = false;  // whether weights may be
  static constexpr double coefficients[degree + 1][taps] = {{1}};
};

struct Linear {
  static constexpr int code = 1, taps = 2, first = 0, degree = 1;
  static constexpr double rounding = 0;
  static constexpr bool negative = false;
  static constexpr double coefficients[degree + 1][taps] = {{1, 0}, {-1, 1}};
};

struct Cubic {  // Keys, a = -1/2 (Catmull-Rom)
  static constexpr int code = 3, taps = 4, first = -1, degree = 3;
  static constexpr double rounding = 0;
  static constexpr bool negative = true;
  static constexpr double coefficients[degree + 1][taps] = {
      {0, 1, 0, 0}, {-0.5, 0, 0.5, 0}, {1, -2.5, 2, -0.5}, {-0.5, 1.5, -1.5, 0.5}};
};

#if defined(__CUDACC__)
// Device code may use values of a class's constants, but not index arrays of them: it has a copy.
template <class Interpolation>
struct Coefficients {
  double of[Interpolation::degree + 1][Interpolation::taps];

  TORCH_PROJECTORS_INLINE constexpr Coefficients() : of() {
    for (int power = 0; power <= Interpolation::degree; ++power)
      for (int tap = 0; tap < Interpolation::taps; ++tap) of[power][tap] = Interpolation::coefficients[power][tap];
  }
};

template <class Interpolation>
TORCH_PROJECTORS_INLINE double coefficient(int power, int tap) {
  constexpr Coefficients<Interpolation> copy;
  return copy.of[power][tap];
}
#else
template <class Interpolation>
TORCH_PROJECTORS_INLINE double coefficient(int power, int tap) {
  return Interpolation::coefficients[power][tap];
}
#endif

// Weight of one tap at t, and its derivative.
template <class Interpolation, class T>
TORCH_PROJECTORS_INLINE T weight(int tap, T t) {
  T w = T(coefficient<Interpolation>(Interpolation::degree, tap));
  for (int power = Interpolation::degree - 1; power >= 0; --power)
    w = w * t + T(coefficient<Interpolation>(power, tap));
  return w;
}

template <class Interpolation, class T>
TORCH_PROJECTORS_INLINE T slope(int tap, T t) {
  if (Interpolation::degree == 0) return 0 * t;
  T w = T(Interpolation::degree * coefficient<Interpolation>(Interpolation::degree, tap));
  for (int power = Interpolation::degree - 1; power >= 1; --power)
    w = w * t + T(power * coefficient<Interpolation>(power, tap));
  return w;
}

}  // namespace torch_projectors
