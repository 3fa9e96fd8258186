// Differentiable Fourier projections for C++ programs with LibTorch 2.10 or later: forward_project and backward_project
// of the Python package torch_projectors, with its conventions, broadcasting and gradients.
//
//   torch_projectors::load("libtorch_projectors_cpu.so");                // once
//   torch_projectors::load("libtorch_projectors_cuda.so", at::kCUDA);    // for CUDA tensors
//   auto images = torch_projectors::forward_project(volume, rotations, shifts);
//   auto [sum, weight_sum] = torch_projectors::backward_project(images, rotations, shifts, weights);
//
// Half spectra are laid out as rfftn does: DC at index 0, the last axis x stored for frequencies 0..W/2. Shapes are
// real-space shapes in array order, ([D,] H, W). Vectors are (x, y[, z]); matrices act on columns.
//
// Gradients of any order flow to volumes, images and weights, first ones also to rotations and shifts. To differentiate
// a gradient of rotations or shifts once more is an error: only the Python package can. Forward mode is an error too.
//
// In a process with Python, torch_projectors may be imported, but before `load`, as it defines the same ops. Then the
// device is any that it serves, and `load` is not needed.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <exception>
#include <initializer_list>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/DynamicLibrary.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

namespace torch_projectors {

enum class Interpolation : int64_t { nearest = 0, linear = 1, cubic = 3 };

// friedel counts each pair of Friedel mates once in gradients, as losses over half spectra mean it; stored takes the
// plain product over the stored half, as irfftn after this expects it.
enum class Gradient { friedel, stored };

// One and the same for projection and its adjoint.
struct Options {
  // Real-space shape of projections. By default that of the last two axes of the reconstruction, divided by the
  // oversampling; in backward_project that of its argument, which must be told for volumes, and where the parity of W
  // differs from that of the other axes.
  std::vector<int64_t> projection_shape = {};
  // Real-space shape of the reconstruction. By default that of the argument, to be told where the parity of W differs;
  // in backward_project that of the projections times the oversampling, with D of a volume the longer of their axes.
  std::vector<int64_t> reconstruction_shape = {};
  Interpolation interpolation = Interpolation::linear;
  // How much finer the reconstruction's frequencies are sampled, by zero padding in real space: >= 1.
  double oversampling = 1;
  // Frequencies of projections beyond it, in their pixels, are zero or left out. By default half of their shortest
  // axis; may be infinite.
  std::optional<double> fourier_radius_cutoff = std::nullopt;
  Gradient gradient = Gradient::friedel;
};

namespace detail {

using at::IntArrayRef;
using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Shape = std::vector<int64_t>;

// The version of the ops that is called here.
constexpr int32_t kAbi = 1;

// Of (volume, images, rotations, shifts).
using Needs = std::array<bool, 4>;
using Gradients = std::array<Tensor, 4>;

// The arguments that every op ends with.
struct Geometry {
  Shape volume_shape, image_shape;
  int64_t interpolation;
  double oversampling, cutoff;
  bool pairs_once;  // images count each Friedel pair once

  void save(AutogradContext* ctx) const {
    ctx->saved_data["volume_shape"] = volume_shape;
    ctx->saved_data["image_shape"] = image_shape;
    ctx->saved_data["interpolation"] = interpolation;
    ctx->saved_data["oversampling"] = oversampling;
    ctx->saved_data["cutoff"] = cutoff;
    ctx->saved_data["pairs_once"] = pairs_once;
  }

  static Geometry saved(AutogradContext* ctx) {
    auto& data = ctx->saved_data;
    return {data["volume_shape"].toIntVector(), data["image_shape"].toIntVector(), data["interpolation"].toInt(),
            data["oversampling"].toDouble(), data["cutoff"].toDouble(), data["pairs_once"].toBool()};
  }
};

// The ops. Absent tensors are undefined.

template <class Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  const auto op = c10::Dispatcher::singleton().findSchema({name, ""});
  TORCH_CHECK(op.has_value(), name, ": no such op yet; call torch_projectors::load first");
  return op->typed<Signature>();
}

inline std::optional<Tensor> if_any(const Tensor& x) { return x.defined() ? std::optional<Tensor>(x) : std::nullopt; }

template <class... Results, class... Arguments, class... More>
auto call(const c10::TypedOperatorHandle<Results...>& op, const Geometry& g, std::tuple<Arguments...> tensors,
          More... more) {
  // Derivatives are taken here, not by what else may be registered for the ops.
  const at::AutoDispatchBelowADInplaceOrView guard;
  return std::apply(
      [&](const auto&... tensor) {
        return op.call(tensor..., c10::fromIntArrayRefSlow(g.volume_shape), c10::fromIntArrayRefSlow(g.image_shape),
                       g.interpolation, g.oversampling, g.cutoff, g.pairs_once, more...);
      },
      tensors);
}

inline Tensor forward_op(const Tensor& volume, const Tensor& rotations, const std::optional<Tensor>& shifts,
                         const Geometry& g) {
  using Op = Tensor(const Tensor&, const Tensor&, const std::optional<Tensor>&, c10::SymIntArrayRef,
                    c10::SymIntArrayRef, int64_t, double, double, bool);
  static const auto op = find<Op>("torch_projectors::forward_project");
  return call(op, g, std::tie(volume, rotations, shifts));
}

using Backward = std::tuple<Tensor, Tensor>(const Tensor&, const std::optional<Tensor>&, const Tensor&,
                                            const std::optional<Tensor>&, c10::SymIntArrayRef, c10::SymIntArrayRef,
                                            int64_t, double, double, bool);

inline std::tuple<Tensor, Tensor> backward_op(const Tensor& images, const std::optional<Tensor>& weights,
                                              const Tensor& rotations, const std::optional<Tensor>& shifts,
                                              const Geometry& g) {
  static const auto op = find<Backward>("torch_projectors::backward_project");
  return call(op, g, std::tie(images, weights, rotations, shifts));
}

// backward_op, and then with_mates.
inline std::tuple<Tensor, Tensor> insert_op(const Tensor& images, const std::optional<Tensor>& weights,
                                            const Tensor& rotations, const std::optional<Tensor>& shifts,
                                            const Geometry& g) {
  static const auto op = find<Backward>("torch_projectors::insert_projections");
  return call(op, g, std::tie(images, weights, rotations, shifts));
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor> gradients_op(const Tensor& volume, const Tensor& images,
                                                               const Tensor& rotations,
                                                               const std::optional<Tensor>& shifts, const Geometry& g,
                                                               const Needs& need) {
  using Op = std::tuple<Tensor, Tensor, Tensor, Tensor>(
      const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, c10::SymIntArrayRef,
      c10::SymIntArrayRef, int64_t, double, double, bool, bool, bool, bool, bool);
  static const auto op = find<Op>("torch_projectors::project_gradients");
  return call(op, g, std::tie(volume, images, rotations, shifts), need[0], need[1], need[2], need[3]);
}

// Columns that hold both members of each Friedel pair; every other column holds one.
inline Shape paired_columns(int64_t width) { return width % 2 == 0 ? Shape{0, width / 2} : Shape{0}; }

// The spectrum with 1/2 on its paired columns: a sum over it counts each Friedel pair once.
inline Tensor halved(const Tensor& spectrum, int64_t width) {
  Tensor factors = at::ones({spectrum.size(-1)}, spectrum.options().dtype(at::toRealValueType(spectrum.scalar_type())));
  for (const int64_t column : paired_columns(width)) factors.select(0, column).fill_(0.5);
  return spectrum * factors;
}

// The spectrum, changed in place, with its own conjugate mate added to each paired plane: V(0, y) + conj V(0, -y).
inline Tensor with_mates(const Tensor& spectrum, IntArrayRef shape) {
  Shape axes;
  for (int64_t axis = 1; axis < int64_t(shape.size()); ++axis) axes.push_back(-axis);
  for (const int64_t column : paired_columns(shape.back())) {
    const Tensor plane = spectrum.select(-1, column);
    plane.add_(plane.flip(axes).roll(Shape(axes.size(), 1), axes).conj());
  }
  return spectrum;
}

// Derivatives, those of torch_projectors/derivatives.py: all ops come from one pairing,
// L = Re <P(volume; rotations, shifts), images>, bilinear in volume and images, and are its first derivatives.
// Tensors are canonical:
//   volume [B, (D,) H, W/2+1], images [B, P, (D,) H, W/2+1], rotations [B or 1, P, d, d], shifts [B or 1, P, d].

Tensor project(const Tensor& volume, const Tensor& rotations, const Tensor& shifts, const Geometry& g, bool friedel);
std::tuple<Tensor, Tensor> backproject(const Tensor& images, const Tensor& weights, const Tensor& rotations,
                                       const Tensor& shifts, const Geometry& g, bool friedel);
Gradients project_gradients(const Tensor& volume, const Tensor& images, const Tensor& rotations, const Tensor& shifts,
                            const Geometry& g, const Needs& need);

// Derivatives of L, by the op that does no more than is needed; undefined where they are not.
inline Gradients gradients(const Tensor& volume, const Tensor& images, const Tensor& rotations, const Tensor& shifts,
                           const Geometry& g, const Needs& need) {
  const bool pose = need[2] || need[3];
  if (!need[0] && !need[1] && !pose) return {};
  if (!need[1] && !pose) return {std::get<0>(backproject(images, {}, rotations, shifts, g, false))};
  if (!need[0] && !pose) return {Tensor(), project(volume, rotations, shifts, g, false)};
  Gradients result = project_gradients(volume, images, rotations, shifts, g, need);
  for (size_t i = 0; i < 4; ++i)
    if (!need[i]) result[i] = Tensor();
  return result;
}

// Which of the saved tensors, the function's first arguments, a gradient is asked for.
inline Needs needs(AutogradContext* ctx, const variable_list& saved) {
  Needs need{};
  size_t edge = 0;  // absent tensors have none
  for (size_t i = 0; i < saved.size(); ++i) need[i] = saved[i].defined() && ctx->needs_input_grad(edge++);
  return need;
}

inline void accumulate(Tensor& sum, const Tensor& term) {
  if (term.defined()) sum = sum.defined() ? sum + term : term;
}

struct ForwardProject : torch::autograd::Function<ForwardProject> {
  static Tensor forward(AutogradContext* ctx, const Tensor& volume, const Tensor& rotations,
                        const std::optional<Tensor>& shifts, const Geometry& g, bool friedel) {
    ctx->save_for_backward({volume, rotations, shifts.value_or(Tensor())});
    ctx->set_materialize_grads(false);
    ctx->saved_data["friedel"] = friedel;
    g.save(ctx);
    return forward_op(volume, rotations, shifts, g);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& along) {
    variable_list result(5);
    if (!along[0].defined()) return result;
    const auto saved = ctx->get_saved_variables();
    const Tensor &volume = saved[0], &rotations = saved[1], &shifts = saved[2];
    const Needs need = needs(ctx, saved);
    Geometry g = Geometry::saved(ctx);
    if (ctx->saved_data["friedel"].toBool()) g.pairs_once = true;
    const Gradients grad = gradients(volume, along[0], rotations, shifts, g, {need[0], false, need[1], need[2]});
    result[0] = grad[0];
    result[1] = grad[2];
    result[2] = grad[3];
    return result;
  }
};

struct BackwardProject : torch::autograd::Function<BackwardProject> {
  static variable_list forward(AutogradContext* ctx, const Tensor& images, const std::optional<Tensor>& weights,
                               const Tensor& rotations, const std::optional<Tensor>& shifts, const Geometry& g,
                               bool friedel) {
    ctx->save_for_backward({images, weights.value_or(Tensor()), rotations, shifts.value_or(Tensor())});
    ctx->set_materialize_grads(false);
    ctx->saved_data["friedel"] = friedel;
    g.save(ctx);
    const auto [volume, weight_volume] = backward_op(images, weights, rotations, shifts, g);
    if (!weights.has_value()) ctx->mark_non_differentiable({weight_volume});
    return {volume, weight_volume};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& along) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &images = saved[0], &weights = saved[1], &rotations = saved[2], &shifts = saved[3];
    const Needs need = needs(ctx, saved);
    const Geometry g = Geometry::saved(ctx);
    const auto counted = [&](const Tensor& grad) {
      return ctx->saved_data["friedel"].toBool() ? halved(grad, g.volume_shape.back()) : grad;
    };
    variable_list result(6);
    if (along[0].defined()) {
      const Gradients grad =
          gradients(counted(along[0]), images, rotations, shifts, g, {false, need[0], need[2], need[3]});
      result[0] = grad[1];
      result[2] = grad[2];
      result[3] = grad[3];
    }
    if (along[1].defined() && weights.defined()) {
      const Gradients grad = gradients(counted(along[1]), weights, rotations, {}, g, {false, need[1], need[2], false});
      result[1] = grad[1];
      accumulate(result[2], grad[2]);
    }
    return result;
  }
};

struct ProjectGradients : torch::autograd::Function<ProjectGradients> {
  static variable_list forward(AutogradContext* ctx, const Tensor& volume, const Tensor& images,
                               const Tensor& rotations, const std::optional<Tensor>& shifts, const Geometry& g,
                               const Needs& need) {
    ctx->save_for_backward({volume, images, rotations, shifts.value_or(Tensor())});
    ctx->set_materialize_grads(false);
    g.save(ctx);
    const auto [d_volume, d_images, d_rotations, d_shifts] = gradients_op(volume, images, rotations, shifts, g, need);
    const variable_list result = {d_volume, d_images, d_rotations, d_shifts};
    variable_list empty;
    for (size_t i = 0; i < 4; ++i)
      if (!need[i]) empty.push_back(result[i]);
    ctx->mark_non_differentiable(empty);
    return result;
  }

  // The Hessian of L times a direction, which must not vary the pose: of that there is no op.
  static variable_list backward(AutogradContext* ctx, const variable_list& along) {
    TORCH_CHECK(!along[2].defined() && !along[3].defined(),
                "torch_projectors: a gradient of rotations or shifts cannot be differentiated again in C++; detach it, "
                "or take it without create_graph");
    const auto saved = ctx->get_saved_variables();
    const Tensor &volume = saved[0], &images = saved[1], &rotations = saved[2], &shifts = saved[3];
    const Needs need = needs(ctx, saved);
    const Geometry g = Geometry::saved(ctx);
    variable_list result(6);
    const auto accumulate_all = [&](const Gradients& terms) {
      for (size_t i = 0; i < 4; ++i) accumulate(result[i], terms[i]);
    };
    if (along[0].defined())
      accumulate_all(gradients(along[0], images, rotations, shifts, g, {false, need[1], need[2], need[3]}));
    if (along[1].defined())
      accumulate_all(gradients(volume, along[1], rotations, shifts, g, {need[0], false, need[2], need[3]}));
    return result;
  }
};

// What the ops expect, who look at memory.
inline Tensor plain(const Tensor& x) { return x.defined() ? x.resolve_conj().resolve_neg().contiguous() : x; }

inline Tensor project(const Tensor& volume, const Tensor& rotations, const Tensor& shifts, const Geometry& g,
                      bool friedel) {
  return ForwardProject::apply(plain(volume), plain(rotations), if_any(plain(shifts)), g, friedel);
}

inline std::tuple<Tensor, Tensor> backproject(const Tensor& images, const Tensor& weights, const Tensor& rotations,
                                              const Tensor& shifts, const Geometry& g, bool friedel) {
  const auto result = BackwardProject::apply(plain(images), if_any(plain(weights)), plain(rotations),
                                             if_any(plain(shifts)), g, friedel);
  return {result[0], result[1]};
}

// backproject, completed by mates; in one op where nothing is differentiated.
inline std::tuple<Tensor, Tensor> insert(const Tensor& images, const Tensor& weights, const Tensor& rotations,
                                         const Tensor& shifts, const Geometry& g, bool friedel) {
  const auto differentiated = [](const Tensor& x) {
    return x.defined() && ((at::GradMode::is_enabled() && x.requires_grad()) || x._fw_grad(/*level=*/0).defined());
  };
  if (!differentiated(images) && !differentiated(weights) && !differentiated(rotations) && !differentiated(shifts))
    return insert_op(plain(images), if_any(plain(weights)), plain(rotations), if_any(plain(shifts)), g);
  const auto [volume, weight_volume] = backproject(images, weights, rotations, shifts, g, friedel);
  return {with_mates(volume, g.volume_shape),
          weights.defined() ? with_mates(weight_volume, g.volume_shape) : weight_volume};
}

inline Gradients project_gradients(const Tensor& volume, const Tensor& images, const Tensor& rotations,
                                   const Tensor& shifts, const Geometry& g, const Needs& need) {
  const auto result =
      ProjectGradients::apply(plain(volume), plain(images), plain(rotations), if_any(plain(shifts)), g, need);
  return {result[0], result[1], result[2], result[3]};
}

// Checks of arguments.

inline Shape stored(Shape shape) {
  shape.back() = shape.back() / 2 + 1;
  return shape;
}

// Real-space shape of a half spectrum: the width is that of the nearest axis that agrees, else even.
inline Shape real_shape(IntArrayRef stored) {
  Shape shape = stored.vec();
  const int64_t columns = shape.back();
  shape.back() = std::max<int64_t>(2 * (columns - 1), 1);
  for (size_t a = shape.size() - 1; a-- > 0;) {
    if (shape[a] / 2 + 1 != columns) continue;
    shape.back() = shape[a];
    break;
  }
  return shape;
}

inline c10::DispatchKey key_of(at::DeviceType device) {
  return device == at::kCUDA ? c10::DispatchKey::CUDA : c10::DispatchKey::CPU;
}

// As files and C functions have it, or as packages are distributed.
inline std::string package_of(at::DeviceType device, const std::string& between) {
  return "torch" + between + "projectors" + between + (device == at::kCUDA ? "cuda" : "cpu");
}

// The Python package has kernels for every device.
inline void check_served(const char* name, const Tensor& x) {
  const auto op = c10::Dispatcher::singleton().findSchema({"torch_projectors::forward_project", ""});
  const at::DeviceType device = x.device().type();
  const bool known = device == at::kCPU || device == at::kCUDA;
  if (!known || (op.has_value() && op->hasKernelForDispatchKey(c10::DispatchKey::CompositeExplicitAutograd))) return;
  TORCH_CHECK(op.has_value() && op->hasKernelForDispatchKey(key_of(device)), name, ": no kernels for tensors on ",
              x.device(), " yet; call torch_projectors::load first, with the library of ", package_of(device, "-"),
              device == at::kCUDA ? " and at::kCUDA" : "");
}

inline void check_spectrum(const char* name, const Tensor& x) {
  TORCH_CHECK(x.defined(), name, ": expected a tensor, got an undefined one");
  TORCH_CHECK(x.scalar_type() == at::kComplexFloat || x.scalar_type() == at::kComplexDouble, name,
              ": expected a half spectrum, ComplexFloat or ComplexDouble, got ", x.scalar_type(), " of shape ",
              x.sizes());
  check_served(name, x);
}

inline void check_pose(const char* name, const Tensor& x, const Tensor& data) {
  TORCH_CHECK(x.defined(), name, ": expected a tensor, got an undefined one");
  TORCH_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble, name, ": expected Float or Double, got ",
              x.scalar_type(), " of shape ", x.sizes());
  TORCH_CHECK(x.device() == data.device(), name, ": expected a tensor on ", data.device(),
              ", where the data is, got one on ", x.device());
  // Values on other devices would have to be waited for. 0 * x is 0 unless something is not finite.
  TORCH_CHECK(!x.is_cpu() || (x.detach() * 0).sum().item<double>() == 0, name, ": expected finite values");
}

// Returns 2 or 3.
inline int64_t check_rotations(const Tensor& rotations, const Tensor& data) {
  check_pose("rotations", rotations, data);
  for (const int64_t dims : {2, 3})
    if (rotations.dim() >= 2 && rotations.size(-2) == dims && rotations.size(-1) == dims) return dims;
  TORCH_CHECK(false, "rotations: expected matrices [..., P, 2, 2] or [..., P, 3, 3], got shape ", rotations.sizes());
}

inline void check_shifts(const Tensor& shifts, int64_t dims, const Tensor& data) {
  if (!shifts.defined()) return;
  check_pose("shifts", shifts, data);
  TORCH_CHECK(shifts.dim() >= 1 && shifts.size(-1) == dims, "shifts: expected [..., P, ", dims,
              "], a vector for each projection, got shape ", shifts.sizes());
}

inline void check_weights(const Tensor& weights, const Tensor& projections) {
  if (!weights.defined()) return;
  const auto dtype = at::toRealValueType(projections.scalar_type());
  TORCH_CHECK(weights.scalar_type() == dtype, "weights: expected ", dtype, ", got ", weights.scalar_type());
  TORCH_CHECK(weights.sizes() == projections.sizes(), "weights: expected the shape of projections, ",
              projections.sizes(), ", got ", weights.sizes());
  TORCH_CHECK(weights.device() == projections.device(), "weights: expected a tensor on ", projections.device(),
              ", where the data is, got one on ", weights.device());
  if (!weights.is_cpu() || weights.numel() == 0) return;
  const double smallest = weights.detach().min().item<double>();
  TORCH_CHECK(smallest >= 0, "weights: expected values >= 0, got ", smallest);
}

inline void check_rank(const char* name, const Tensor& x, int64_t dims, int64_t rotation_dims) {
  const bool empty =
      x.dim() < dims || std::any_of(x.sizes().end() - dims, x.sizes().end(), [](auto n) { return n == 0; });
  TORCH_CHECK(!empty, name, ": expected a non-empty half spectrum ",
              dims == 2 ? "[..., H, W/2+1]" : "[..., D, H, W/2+1]", " to go with ", rotation_dims, "x", rotation_dims,
              " rotations, got shape ", x.sizes());
}

inline void check_shape(const char* name, const Shape& shape, int64_t least_dims, int64_t most_dims) {
  const auto dims = int64_t(shape.size());
  const bool positive = std::all_of(shape.begin(), shape.end(), [](int64_t n) { return n >= 1; });
  const char* forms = least_dims < most_dims ? "(H, W) or (D, H, W)" : most_dims == 2 ? "(H, W)" : "(D, H, W)";
  TORCH_CHECK(least_dims <= dims && dims <= most_dims && positive, name, ": expected a real-space shape ", forms,
              " of positive integers, got ", IntArrayRef(shape));
}

// The shape that was told, or else the one that x suggests.
inline Shape check_real_shape(const char* name, const Tensor& x, const char* shape_name, const Shape& told,
                              int64_t dims) {
  const IntArrayRef actual = x.sizes().slice(size_t(x.dim() - dims));
  if (told.empty()) return real_shape(actual);
  check_shape(shape_name, told, dims, dims);
  const Shape expected = stored(told);
  TORCH_CHECK(actual == IntArrayRef(expected), shape_name, ": ", IntArrayRef(told), " has a half spectrum of shape ",
              IntArrayRef(expected), ", but ", name, " has ", actual);
  return told;
}

inline Geometry check_options(const Options& options, Shape volume_shape, Shape image_shape) {
  const auto interpolation = options.interpolation;
  TORCH_CHECK(interpolation == Interpolation::nearest || interpolation == Interpolation::linear ||
                  interpolation == Interpolation::cubic,
              "interpolation: expected nearest, linear or cubic, got ", int64_t(interpolation));
  TORCH_CHECK(options.gradient == Gradient::friedel || options.gradient == Gradient::stored,
              "gradient: expected friedel or stored, got ", int(options.gradient));
  const double shortest = double(*std::min_element(image_shape.begin(), image_shape.end()));
  const double cutoff = options.fourier_radius_cutoff.value_or(shortest / 2);
  TORCH_CHECK(cutoff > 0, "fourier_radius_cutoff: expected a number > 0, got ", cutoff);
  return {std::move(volume_shape), std::move(image_shape), int64_t(interpolation), options.oversampling, cutoff, false};
}

inline void check_oversampling(double oversampling) {
  TORCH_CHECK(oversampling >= 1 && std::isfinite(oversampling), "oversampling: expected a finite number >= 1, got ",
              oversampling);
}

// The nearest size of an axis; half to even, as Python rounds. What is out of bounds is left for the ops to refuse.
inline int64_t rounded(double n) { return int64_t(std::clamp(std::nearbyint(n), 1.0, 1e15)); }

// Leading dimensions, those of torch_projectors/batching.py. What a batch shares is never expanded.

inline Shape joined(std::initializer_list<IntArrayRef> parts) {
  Shape all;
  for (const IntArrayRef part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

inline IntArrayRef without_last(const Tensor& x, int64_t trailing) {
  return x.sizes().slice(0, size_t(x.dim() - trailing));
}

// Merges a shape into the one that all broadcast to. Returns whether it fits.
inline bool broadcast(Shape& all, IntArrayRef shape) {
  if (all.size() < shape.size()) all.insert(all.begin(), shape.size() - all.size(), 1);
  const size_t first = all.size() - shape.size();
  for (size_t i = 0; i < shape.size(); ++i) {
    int64_t& n = all[first + i];
    if (shape[i] == 1 || shape[i] == n) continue;
    if (n != 1) return false;
    n = shape[i];
  }
  return true;
}

inline int64_t product(IntArrayRef numbers) { return c10::multiply_integers(numbers); }

inline Tensor aligned(Tensor x, int64_t dims) {
  while (x.defined() && x.dim() < dims) x = x.unsqueeze(0);
  return x;
}

// Merges the leading dimensions into one: of size 1 if all of them are shared, else that of the batch.
inline Tensor to_batch(const Tensor& pose, IntArrayRef lead) {
  const IntArrayRef own = pose.sizes().slice(0, lead.size()), inner = pose.sizes().slice(lead.size());
  if (std::all_of(own.begin(), own.end(), [](int64_t n) { return n == 1; })) return pose.reshape(joined({{1}, inner}));
  return pose.expand(joined({lead, inner})).reshape(joined({{product(lead)}, inner}));
}

// Poses with P, in the precision of the data.
inline Tensor to_poses(const Tensor& x, int64_t dims, bool single, const Tensor& data) {
  if (!x.defined()) return x;
  const Tensor pose = x.to(at::toRealValueType(data.scalar_type()));
  return single || pose.dim() == dims ? pose.unsqueeze(-1 - dims) : pose;
}

// Projects volume [..., *grid] by rotations [..., P, d, d] and shifts [..., P, d] to images [..., P, *grid]. Where only
// the poses have a leading dimension, it becomes poses of one volume; the others become the batch.
inline Tensor fold_forward(Tensor volume, Tensor rotations, Tensor shifts, const Geometry& g, bool friedel) {
  const auto grid = int64_t(g.volume_shape.size());
  const int64_t leading =
      std::max({volume.dim() - grid, rotations.dim() - 3, shifts.defined() ? shifts.dim() - 2 : int64_t(0)});
  volume = aligned(volume, leading + grid);
  rotations = aligned(rotations, leading + 3);
  shifts = aligned(shifts, leading + 2);
  Shape lead = without_last(rotations, 2).vec();
  if (shifts.defined()) broadcast(lead, without_last(shifts, 1));
  const int64_t count = lead.back();
  lead.pop_back();
  broadcast(lead, without_last(volume, grid));

  Shape shared, own, batch, per_volume;  // own: dimensions of the poses alone
  for (int64_t i = 0; i < leading; ++i) {
    const int64_t n = lead[size_t(i)];
    const bool of_poses = volume.size(i) == 1 && n != 1;
    (of_poses ? own : shared).push_back(i);
    (of_poses ? per_volume : batch).push_back(n);
  }
  per_volume.push_back(count);

  const auto order = [&](const Tensor& x) {
    Shape all = joined({shared, own});
    for (int64_t i = leading; i < x.dim(); ++i) all.push_back(i);
    return all;
  };
  const auto fold = [&](Tensor pose) {
    if (!pose.defined()) return pose;
    const Shape inner = pose.sizes().slice(size_t(leading) + 1).vec();
    if (!own.empty()) pose = pose.permute(order(pose));
    const Shape outer = pose.sizes().slice(0, shared.size()).vec();
    pose = pose.expand(joined({outer, per_volume, inner})).reshape(joined({outer, {product(per_volume)}, inner}));
    return to_batch(pose, batch);
  };

  const Shape box = volume.sizes().slice(size_t(leading)).vec();
  if (!own.empty()) volume = volume.permute(order(volume));
  volume = volume.expand(joined({batch, volume.sizes().slice(shared.size())}));
  volume = volume.reshape(joined({{product(batch)}, box}));
  Tensor images = project(volume, fold(rotations), fold(shifts), g, friedel);
  images = images.reshape(joined({batch, per_volume, images.sizes().slice(2)}));
  if (own.empty()) return images;
  const Shape moved = order(images);
  Shape back(moved.size());
  for (size_t i = 0; i < moved.size(); ++i) back[size_t(moved[i])] = int64_t(i);
  return images.permute(back);
}

// Back-projects images and weights [..., P, *grid] to volumes [..., *grid]; the latter is undefined without weights.
inline std::tuple<Tensor, Tensor> fold_backward(Tensor images, Tensor weights, Tensor rotations, Tensor shifts,
                                                const Geometry& g, bool friedel) {
  const auto grid = int64_t(g.image_shape.size());
  const int64_t leading =
      std::max({images.dim() - grid - 1, rotations.dim() - 3, shifts.defined() ? shifts.dim() - 2 : int64_t(0)});
  images = aligned(images, leading + grid + 1);
  weights = aligned(weights, leading + grid + 1);
  rotations = aligned(rotations, leading + 3);
  shifts = aligned(shifts, leading + 2);
  Shape lead = without_last(images, grid).vec();
  broadcast(lead, without_last(rotations, 2));
  if (shifts.defined()) broadcast(lead, without_last(shifts, 1));
  const int64_t poses = lead.back();
  lead.pop_back();

  const auto fold_data = [&](const Tensor& x) {
    if (!x.defined()) return x;
    const IntArrayRef box = x.sizes().slice(size_t(leading) + 1);
    return x.expand(joined({lead, {poses}, box})).reshape(joined({{product(lead), poses}, box}));
  };
  const auto fold = [&](const Tensor& x) {
    if (!x.defined()) return x;
    const IntArrayRef own = x.sizes().slice(0, size_t(leading)), inner = x.sizes().slice(size_t(leading) + 1);
    return to_batch(x.expand(joined({own, {poses}, inner})), lead);
  };
  auto [volume, weight_volume] =
      insert(fold_data(images), fold_data(weights), fold(rotations), fold(shifts), g, friedel);
  volume = volume.reshape(joined({lead, volume.sizes().slice(1)}));
  return {volume, weights.defined() ? weight_volume.reshape(volume.sizes()) : Tensor()};
}

}  // namespace detail

// Loads the shared library of torch-projectors-cpu, or with at::kCUDA that of torch-projectors-cuda, for good, and
// registers its kernels, and the ops where nothing else has defined them. Tensors on that device are then served. Does
// nothing if the device has kernels already; may be called again, from any thread.
inline void load(const std::string& path, at::DeviceType device = at::kCPU) {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  TORCH_CHECK(device == at::kCPU || device == at::kCUDA, "load: expected cpu or cuda, got ", device);
  const auto op = c10::Dispatcher::singleton().findSchema({"torch_projectors::forward_project", ""});
  if (op.has_value() && op->hasKernelForDispatchKey(detail::key_of(device))) return;
  at::DynamicLibrary library(path.c_str(), nullptr, /*leak_handle=*/true);
  const std::string prefix = detail::package_of(device, "_");
  const auto function = [&](const char* name) {
    try {
      return library.sym((prefix + name).c_str());
    } catch (const std::exception&) {
      TORCH_CHECK(false, path, ": expected the library of ", detail::package_of(device, "-"), ", but it has no ",
                  prefix, name);
    }
  };
  const auto abi = reinterpret_cast<int32_t (*)()>(function("_abi"));
  const auto register_ops = reinterpret_cast<int32_t (*)(int32_t)>(function("_register"));
  const auto message = reinterpret_cast<const char* (*)()>(function("_message"));
  TORCH_CHECK(abi() == detail::kAbi, path, ": expected ABI ", detail::kAbi, " of torch_projectors, got ", abi(),
              "; compile with the header that came with the library");
  TORCH_CHECK(register_ops(op.has_value() ? 0 : 1) == 0, path, ": ", message());
}

// Fourier projections: central slices of a volume, or rotated copies of an image or a volume. Every output frequency k,
// in (x, y[, z]), is F(oversampling * M @ k) * exp(-2 pi i sum(k * s / N)), where F interpolates the reconstruction, M
// is the rotation, s the shift and N the output size.
//
// reconstruction: complex [..., (D,) H, W/2+1]. rotations: [..., P, 2, 2] for images of images, [..., P, 3, 3] for
// images or volumes of a volume; leading dimensions broadcast. A single matrix [d, d] stands for one pose, without P in
// the output. shifts: [..., P, d] in pixels of the output; positive moves the content along +axis.
//
// Returns the projections, [..., P, (D,) H, W/2+1] of the output.
inline at::Tensor forward_project(const at::Tensor& reconstruction, const at::Tensor& rotations,
                                  const std::optional<at::Tensor>& shifts = std::nullopt, const Options& options = {}) {
  using namespace detail;
  const Tensor shift = shifts.value_or(Tensor());
  check_spectrum("reconstruction", reconstruction);
  const int64_t dims = check_rotations(rotations, reconstruction);
  check_rank("reconstruction", reconstruction, dims, dims);
  check_oversampling(options.oversampling);
  const Shape volume_shape =
      check_real_shape("reconstruction", reconstruction, "reconstruction_shape", options.reconstruction_shape, dims);
  Shape image_shape = options.projection_shape;
  if (image_shape.empty()) {
    for (size_t a = volume_shape.size() - 2; a < volume_shape.size(); ++a)
      image_shape.push_back(rounded(double(volume_shape[a]) / options.oversampling));
  }
  check_shape("projection_shape", image_shape, 2, dims);
  const Geometry g = check_options(options, volume_shape, image_shape);
  check_shifts(shift, int64_t(image_shape.size()), reconstruction);
  const bool single = rotations.dim() == 2 && (!shift.defined() || shift.dim() == 1);
  Shape lead = without_last(rotations, 2).vec();
  bool fits = !shift.defined() || broadcast(lead, without_last(shift, 1));
  // No dimension of the reconstruction pairs with P.
  fits = fits && (single || broadcast(lead, joined({without_last(reconstruction, dims), {1}})));
  TORCH_CHECK(fits, "leading dimensions and P do not broadcast: reconstruction ", reconstruction.sizes(),
              ", rotations ", rotations.sizes(), ", shifts ", shift.defined() ? shift.sizes() : IntArrayRef());
  const Tensor images =
      fold_forward(reconstruction, to_poses(rotations, 2, single, reconstruction),
                   to_poses(shift, 1, single, reconstruction), g, options.gradient == Gradient::friedel);
  return single ? images.squeeze(-1 - int64_t(image_shape.size())) : images;
}

// Inserts projections into a reconstruction: the adjoint of forward_project between real-space signals. Every component
// of the full spectra is inserted once, and so is its Friedel mate. Shifts are undone.
//
// projections: complex [..., P, (D,) H, W/2+1]. rotations, shifts: as given to forward_project; leading dimensions and
// P broadcast; for a single matrix [d, d], projections have no P. weights: real, of the projections' shape, >= 0, such
// as CTF^2: inserted with |interpolation weight|.
//
// Returns the reconstruction [..., (D,) H, W/2+1], and the sum of weights, real, of the same shape; undefined without.
inline std::tuple<at::Tensor, at::Tensor> backward_project(const at::Tensor& projections, const at::Tensor& rotations,
                                                           const std::optional<at::Tensor>& shifts = std::nullopt,
                                                           const std::optional<at::Tensor>& weights = std::nullopt,
                                                           const Options& options = {}) {
  using namespace detail;
  const Tensor shift = shifts.value_or(Tensor()), weight = weights.value_or(Tensor());
  check_spectrum("projections", projections);
  const int64_t dims = check_rotations(rotations, projections);
  if (!options.projection_shape.empty()) check_shape("projection_shape", options.projection_shape, 2, dims);
  const int64_t image_dims = options.projection_shape.empty() ? 2 : int64_t(options.projection_shape.size());
  check_rank("projections", projections, image_dims, dims);
  check_oversampling(options.oversampling);
  const Shape image_shape =
      check_real_shape("projections", projections, "projection_shape", options.projection_shape, image_dims);
  Shape volume_shape = options.reconstruction_shape;
  if (volume_shape.empty()) {
    if (image_dims < dims) volume_shape.push_back(std::max(image_shape[0], image_shape[1]));
    volume_shape.insert(volume_shape.end(), image_shape.begin(), image_shape.end());
    for (int64_t& n : volume_shape) n = rounded(double(n) * options.oversampling);
  }
  check_shape("reconstruction_shape", volume_shape, dims, dims);
  Geometry g = check_options(options, volume_shape, image_shape);
  g.pairs_once = true;
  check_shifts(shift, image_dims, projections);
  check_weights(weight, projections);
  const bool single = rotations.dim() == 2 && (!shift.defined() || shift.dim() == 1);
  Shape lead = without_last(rotations, 2).vec();
  const bool fits = (!shift.defined() || broadcast(lead, without_last(shift, 1))) &&
                    broadcast(lead, without_last(projections, image_dims));
  TORCH_CHECK(fits, "leading dimensions and P do not broadcast: projections ", projections.sizes(), ", rotations ",
              rotations.sizes(), ", shifts ", shift.defined() ? shift.sizes() : IntArrayRef(),
              "; projections that are volumes need projection_shape=(D, H, W)");
  const auto to_poses_of = [&](const Tensor& x) {
    return x.defined() && single ? x.unsqueeze(-1 - image_dims) : x;
  };
  return fold_backward(to_poses_of(projections), to_poses_of(weight), to_poses(rotations, 2, single, projections),
                       to_poses(shift, 1, single, projections), g, options.gradient == Gradient::friedel);
}

}  // namespace torch_projectors
