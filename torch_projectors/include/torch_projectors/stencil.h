// Every tap of a sample: where it is stored, whether as its conjugate mate, and its weights.
#pragma once

#include <cmath>

#include "interpolation.h"

namespace torch_projectors {

// Calls visit(offset, mirrored, weights by axis, slopes by axis) for the taps of a sample at p that are stored; others
// are zero. A tap at k.x < 0 is stored at -k, conjugated. Returns false, and visits nothing, where p is not finite.
template <class Interpolation, class T, int D, class Visit>
TORCH_PROJECTORS_INLINE bool each_tap(const Grid<D>& grid, const T (&p)[D], const Visit& visit) {
  constexpr int taps = Interpolation::taps;
  int64_t here[D][taps], there[D][taps];  // share of the offset, of a tap itself and of its mate; negative: not stored
  T w[D][taps], s[D][taps];
  int64_t stride = 1;
  bool left[taps] = {};
  for (int a = 0; a < D; ++a) {
    if (!(p[a] - p[a] == 0)) return false;
    const T f = std::floor(p[a] + T(Interpolation::rounding)), t = p[a] - f;
    const int64_t half = grid.shape[a] / 2;
    // What is far outside of the band has no integer to be converted to.
    const int64_t start = (f < T(1e9) && f > T(-1e9) ? int64_t(f) : 2 * half + 8) + Interpolation::first;
    for (int i = 0; i < taps; ++i) {
      const int64_t k = start + i;
      const bool stored = k <= half && k >= -half;
      here[a][i] = stored ? (a > 0 && k < 0 ? k + grid.shape[a] : k) * stride : kNowhere;
      there[a][i] = stored ? (a > 0 && k > 0 ? grid.shape[a] - k : -k) * stride : kNowhere;
      if (a == 0) left[i] = k < 0;
      w[a][i] = weight<Interpolation>(i, t);
      s[a][i] = slope<Interpolation>(i, t);
    }
    stride *= grid.stored(a);
  }
  for (int z = 0; z < (D == 3 ? taps : 1); ++z)
    for (int y = 0; y < taps; ++y)
      for (int x = 0; x < taps; ++x) {
        const int64_t offset = left[x] ? there[0][x] + there[1][y] + (D == 3 ? there[D - 1][z] : 0)
                                       : here[0][x] + here[1][y] + (D == 3 ? here[D - 1][z] : 0);
        if (offset < 0) continue;
        if constexpr (D == 3) {
          const T weights[D] = {w[0][x], w[1][y], w[2][z]}, slopes[D] = {s[0][x], s[1][y], s[2][z]};
          visit(offset, left[x], weights, slopes);
        } else {
          const T weights[D] = {w[0][x], w[1][y]}, slopes[D] = {s[0][x], s[1][y]};
          visit(offset, left[x], weights, slopes);
        }
      }
  return true;
}

}  // namespace torch_projectors
