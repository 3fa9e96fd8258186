// The half spectrum of a real box, and which of its entries a lattice point is stored in.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define TORCH_PROJECTORS_INLINE __host__ __device__ __forceinline__
#else
#define TORCH_PROJECTORS_INLINE inline
#endif

namespace torch_projectors {

// A share of an offset that no other share makes up for.
constexpr int64_t kNowhere = -(int64_t(1) << 60);

template <class T>
struct Complex {
  T re, im;
};

// Axes are x, y[, z]: the reverse of array order. Frequency k of an axis of n points is stored at k < 0 ? k + n : k;
// along x only k >= 0 is, and F(-k) = conj F(k) gives the rest.
template <int D>
struct Grid {
  int64_t shape[D];  // of the real box

  TORCH_PROJECTORS_INLINE int64_t columns() const { return shape[0] / 2 + 1; }

  TORCH_PROJECTORS_INLINE int64_t stored(int axis) const { return axis == 0 ? columns() : shape[axis]; }

  TORCH_PROJECTORS_INLINE int64_t size() const {
    int64_t n = 1;
    for (int a = 0; a < D; ++a) n *= stored(a);
    return n;
  }

  TORCH_PROJECTORS_INLINE int64_t frequency(int axis, int64_t index) const {
    return index > shape[axis] / 2 ? index - shape[axis] : index;
  }
};

}  // namespace torch_projectors
