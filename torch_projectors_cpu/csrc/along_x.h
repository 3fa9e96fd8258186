// The taps of a sample along x, which are neighbours in memory, all at once.
#pragma once

#include "pack.h"
#include "torch_projectors/interpolation.h"

namespace torch_projectors {
namespace LEVEL {

// Tables of what taps along x are weighted with, each as often as an entry has numbers: the coefficient of t^power.
// Vectors made of single numbers would wait until these are stored.
template <class Interpolation, class T, int numbers>
struct TapsAlongX {
  static constexpr int taps = Interpolation::taps, lanes = taps * numbers, powers = Interpolation::degree + 1;
  alignas(64) T coefficients[powers][lanes];

  // Of samples at the edge, from x = 0 on: the taps that are stored as they are, and the mates of the others, whose
  // imaginary parts are turned. Kinds: mirrored with the first tap at x = 0, which is a mate; not mirrored with it at
  // x = -1; mirrored with it at x = -1.
  static constexpr int kinds = taps > 2 ? 3 : 1;
  using Bits = decltype(index_of(T()));
  alignas(64) T at_edge[kinds][2][powers][lanes];
  alignas(64) Bits taken[kinds][2][lanes];  // -1 for taps, else 0

  constexpr TapsAlongX() : coefficients(), at_edge(), taken() {
    for (int power = 0; power < powers; ++power)
      for (int lane = 0; lane < lanes; ++lane)
        coefficients[power][lane] = T(Interpolation::coefficients[power][lane / numbers]);
    for (int kind = 0; kind < kinds; ++kind) {
      const int first = kind == 0 ? 0 : -1, mates = kind == 2 ? 2 : 1;
      for (int i = 0; i < taps; ++i) {
        const bool mate = i < mates;
        for (int c = 0; c < numbers; ++c) {
          const int lane = (mate ? -first - i : first + i) * numbers + c;
          taken[kind][mate][lane] = -1;
          for (int power = 0; power < powers; ++power)
            at_edge[kind][mate][power][lane] =
                T(Interpolation::coefficients[power][i]) * (mate && c == 1 ? T(-1) : T(1));
        }
      }
    }
  }
};

// x weights of all taps of a sample at once: a polynomial in t with packs for coefficients.
template <class Interpolation, class T, int numbers>
struct AlongX {
  static constexpr int taps = Interpolation::taps, lanes = taps * numbers, degree = Interpolation::degree;
  using P = Pack<T, lanes>;
  using Table = T[degree + 1][lanes];
  static constexpr TapsAlongX<Interpolation, T, numbers> tables{};

  static TORCH_PROJECTORS_WITHIN P weights(P t, const Table& of = tables.coefficients) {
    P w = load<P>(of[degree]);
    for (int power = degree - 1; power >= 0; --power) w = w * t + load<P>(of[power]);
    return w;
  }

  static TORCH_PROJECTORS_WITHIN P slopes(P t, const Table& of = tables.coefficients) {
    if (degree == 0) return P{};
    P w = load<P>(of[degree]) * T(degree);
    for (int power = degree - 1; power >= 1; --power) w = w * t + load<P>(of[power]) * T(power);
    return w;
  }

  // Zero where the edge has no taps, whatever x is.
  static TORCH_PROJECTORS_WITHIN P only_taps(int kind, bool mates, const P& x) {
    return lanes_of<T, lanes>(x, tables.taken[kind][mates]);
  }

  static TORCH_PROJECTORS_WITHIN P magnitude(P w) {
    return Interpolation::negative ? magnitudes<T, lanes>(w) : w;
  }

  // Sum over taps: `numbers` numbers, to consecutive places.
  static TORCH_PROJECTORS_WITHIN void sum(const P& x, T* to) { sum_taps<T, lanes, numbers>(x, to); }
};

}  // namespace LEVEL
}  // namespace torch_projectors
