// Compiled once for every level of vector instructions; LEVEL names it.
#ifndef LEVEL
#define LEVEL baseline
#endif

#include "gather.h"
#include "mates.h"
#include "scatter.h"

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

namespace torch_projectors {
namespace LEVEL {

// Calls f with the interpolation, scalar and dimensions as types.
template <class F>
void dispatch(const Problem& q, Scalar scalar, const F& f) {
  const auto with_dims = [&](auto interpolation, auto number) {
    using std::integral_constant;
    if (q.volume_dims == 2) return f(interpolation, number, integral_constant<int, 2>(), integral_constant<int, 2>());
    if (q.image_dims == 2) return f(interpolation, number, integral_constant<int, 3>(), integral_constant<int, 2>());
    return f(interpolation, number, integral_constant<int, 3>(), integral_constant<int, 3>());
  };
  const auto with_interpolation = [&](auto number) {
    if (q.interpolation == Nearest::code) return with_dims(Nearest(), number);
    if (q.interpolation == Linear::code) return with_dims(Linear(), number);
    return with_dims(Cubic(), number);
  };
  if (scalar == Scalar::float32) return with_interpolation(float());
  return with_interpolation(double());
}

#define DISPATCHED(function, ...)                                                                    \
  dispatch(q, scalar, [&](auto interpolation, auto number, auto v, auto i) {                           \
    using Interpolation = decltype(interpolation);                                                       \
    using T = decltype(number);                                                                          \
    if (real)                                                                                            \
      function<Interpolation, T, decltype(v)::value, decltype(i)::value, true>(q, __VA_ARGS__, parallel);   \
    else                                                                                                 \
      function<Interpolation, T, decltype(v)::value, decltype(i)::value, false>(q, __VA_ARGS__, parallel);  \
  })

Kernels kernels() {
  Kernels k;
  k.level = TEXT(LEVEL);
  k.project = [](const Problem& q, Scalar scalar, bool real, const void* volume, void* images,
                 const Parallel& parallel) { DISPATCHED(project, volume, images); };
  k.backproject = [](const Problem& q, Scalar scalar, bool real, const void* images, const void* weights, void* volume,
                     void* weight_volume,
                     const Parallel& parallel) { DISPATCHED(backproject, images, weights, volume, weight_volume); };
  k.gradients = [](const Problem& q, Scalar scalar, bool real, const void* volume, const void* images,
                   void* grad_images, void* grad_rotations, void* grad_shifts, const Parallel& parallel) {
    DISPATCHED(gradients, volume, images, grad_images, grad_rotations, grad_shifts);
  };
  k.add_mates = [](const Problem& q, Scalar scalar, bool real, void* volume, void* weight_volume,
                   const Parallel& parallel) {
    DISPATCHED(add_mates, volume, weight_volume);
  };
  k.roof = [](const Problem& q, Scalar scalar, const void* volume, void* images, const Parallel& parallel) {
    if (scalar == Scalar::float32)
      roof<float>(q, volume, images, parallel);
    else
      roof<double>(q, volume, images, parallel);
  };
  return k;
}

}  // namespace LEVEL
}  // namespace torch_projectors
