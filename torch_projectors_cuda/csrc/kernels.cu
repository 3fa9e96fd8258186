// Compiled once for every SCALAR: float or double.
#include "bricks.h"
#include "gather.h"
#include "mates.h"
#include "owned.h"
#include "scatter.h"

namespace torch_projectors {
namespace {

// Calls f with the interpolation and the dimensions as types.
template <class F>
void dispatch(const Problem& q, const F& f) {
  const auto with_dims = [&](auto interpolation) {
    using std::integral_constant;
    if (q.volume_dims == 2) return f(interpolation, integral_constant<int, 2>(), integral_constant<int, 2>());
    if (q.image_dims == 2) return f(interpolation, integral_constant<int, 3>(), integral_constant<int, 2>());
    return f(interpolation, integral_constant<int, 3>(), integral_constant<int, 3>());
  };
  if (q.interpolation == Nearest::code) return with_dims(Nearest());
  if (q.interpolation == Linear::code) return with_dims(Linear());
  return with_dims(Cubic());
}

#define DISPATCHED(function, ...)                                                                          \
  dispatch(q, [&](auto interpolation, auto v, auto i) {                                                    \
    using Interpolation = decltype(interpolation);                                                         \
    if (real)                                                                                              \
      function<Interpolation, SCALAR, decltype(v)::value, decltype(i)::value, true>(q, __VA_ARGS__);       \
    else                                                                                                   \
      function<Interpolation, SCALAR, decltype(v)::value, decltype(i)::value, false>(q, __VA_ARGS__);      \
  })

template <class T>
decltype(Kernels::backproject_interleaved) interleaved() {
  if constexpr (std::is_same_v<T, float>)
    return [](const Problem& q, const void* images, const void* weights, void* sums, void* volume,
              void* weight_volume) {
      dispatch(q, [&](auto interpolation, auto v, auto i) {
        backproject_interleaved<decltype(interpolation), decltype(v)::value, decltype(i)::value>(
            q, images, weights, sums, volume, weight_volume);
      });
    };
  else
    return nullptr;
}

}  // namespace

template <class T>
Kernels kernels_of();

template <>
Kernels kernels_of<SCALAR>() {
  Kernels k;
  k.project = [](const Problem& q, bool real, const void* volume, void* images) {
    DISPATCHED(project, volume, images);
  };
  k.backproject = [](const Problem& q, bool real, const void* images, const void* weights, void* volume,
                     void* weight_volume) {
    if (q.deterministic)
      DISPATCHED(owned_backproject, images, weights, volume, weight_volume);
    else
      DISPATCHED(backproject, images, weights, volume, weight_volume);
  };
  k.backproject_bricks = [](const Problem& q, bool real, const void* images, const void* weights, void* volume,
                            void* weight_volume) {
    DISPATCHED(bricks_backproject, images, weights, volume, weight_volume);
  };
  k.backproject_interleaved = interleaved<SCALAR>();
  k.gradients = [](const Problem& q, bool real, const void* volume, const void* images, void* grad_images,
                   void* grad_rotations, void* grad_shifts, void* sums) {
    DISPATCHED(gradients, volume, images, grad_images, grad_rotations, grad_shifts, sums);
  };
  k.add_mates = [](const Problem& q, bool real, void* volume, void* weight_volume) {
    const auto f = q.volume_dims == 2 ? real ? add_mates<SCALAR, 2, true> : add_mates<SCALAR, 2, false>
                   : real             ? add_mates<SCALAR, 3, true>
                                      : add_mates<SCALAR, 3, false>;
    f(q, volume, weight_volume);
  };
  k.accumulate = accumulate<SCALAR>;
  return k;
}

}  // namespace torch_projectors
