// The ops of torch_projectors over a C API, registered with the torch that is in the process. For the one source of a
// library that registers them, as Ops<Backend>. A Backend says what differs:
//
//   Problem                        the structure of its C API
//   key                            where kernels are registered, such as "CPU"
//   place, memory                  of tensors, as in "expected a tensor on the CPU", "no memory for a result"
//   check_kernels()                refuses where there can be no kernels
//   begin()                        called once, before kernels are registered
//   device_type()                  of tensors
//   prepare(problem, device)       which threads, or which stream, a call has
//   allocated(tensor, bytes)       sees every result before it is written
//   backward_workspace(problem, weighted), gradients_workspace(problem, volume, poses)
//                                  bytes that a call needs
//   use_workspace(problem, data, bytes)
//   forward_project, backward_project, project_gradients, add_mates, message
//                                  its C API
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "checked.h"
#include "torch_shim.h"

namespace torch_projectors {
namespace {

Shim shim;

// The version of the ops' schemas and of what they mean.
constexpr int32_t kAbi = 1;

constexpr const char* kNamespace = "torch_projectors";

#define GEOMETRY                                                                                    \
  "SymInt[] volume_shape, SymInt[] image_shape, int interpolation, float oversampling, float cutoff, " \
  "bool pairs_once"

[[noreturn]] void fail(const std::string& message) { throw std::runtime_error("torch_projectors: " + message); }

void check(int32_t error, const char* function) {
  if (error != 0) fail(std::string(function) + " failed");
}

#define CHECKED(function, ...) check(shim.function(__VA_ARGS__), #function)

// An owned tensor, or none.
class Tensor {
 public:
  Tensor() = default;
  explicit Tensor(TensorHandle handle) : handle_(handle) {}
  Tensor(Tensor&& other) noexcept : handle_(other.handle_) { other.handle_ = nullptr; }
  Tensor& operator=(Tensor&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Tensor() {
    if (handle_ != nullptr) shim.aoti_torch_delete_tensor_object(handle_);
  }

  explicit operator bool() const { return handle_ != nullptr; }
  TensorHandle get() const { return handle_; }
  StableValue release() { return StableValue(reinterpret_cast<uintptr_t>(std::exchange(handle_, nullptr))); }

  int64_t dims() const {
    int64_t n;
    CHECKED(aoti_torch_get_dim, handle_, &n);
    return n;
  }

  const int64_t* sizes() const {
    int64_t* sizes;
    CHECKED(aoti_torch_get_sizes, handle_, &sizes);
    return sizes;
  }

  int32_t dtype() const {
    int32_t dtype;
    CHECKED(aoti_torch_get_dtype, handle_, &dtype);
    return dtype;
  }

  const void* data() const {
    if (handle_ == nullptr) return nullptr;
    const void* data;
    CHECKED(torch_get_const_data_ptr, handle_, &data);
    return data;
  }

  void* mutable_data() const {
    void* data;
    CHECKED(torch_get_mutable_data_ptr, handle_, &data);
    return data;
  }

 private:
  TensorHandle handle_ = nullptr;
};

// Numbers of a few dimensions, in array order.
struct Sizes {
  std::array<int64_t, 8> values{};
  int count = 0;

  Sizes() = default;
  Sizes(std::initializer_list<int64_t> first) {
    for (const int64_t n : first) values[size_t(count++)] = n;
  }
  Sizes then(const Sizes& more) const {
    Sizes all = *this;
    for (int a = 0; a < more.count; ++a) all.values[size_t(all.count++)] = more.values[size_t(a)];
    return all;
  }
  int64_t operator[](int a) const { return values[size_t(a)]; }
  int64_t product() const {
    int64_t n = 1;
    for (int a = 0; a < count; ++a) n = times(n, values[size_t(a)]);
    return n;
  }
  Sizes stored() const {
    Sizes half = *this;
    half.values[size_t(count - 1)] = half[count - 1] / 2 + 1;
    return half;
  }
};

std::string text(const int64_t* sizes, int64_t count) {
  std::string all = "[";
  for (int64_t a = 0; a < count; ++a) all += (a == 0 ? "" : ", ") + std::to_string(sizes[a]);
  return all + "]";
}

struct Dtype {
  int32_t code, real_code;
  int32_t scalar;
  bool real;
};

Dtype dtype_of(const char* name, const Tensor& tensor) {
  const int32_t code = tensor.dtype();
  const int32_t f32 = shim.aoti_torch_dtype_float32(), f64 = shim.aoti_torch_dtype_float64();
  if (code == shim.aoti_torch_dtype_complex64()) return {code, f32, 0, false};
  if (code == shim.aoti_torch_dtype_complex128()) return {code, f64, 1, false};
  if (code == f32) return {code, f32, 0, true};
  if (code == f64) return {code, f64, 1, true};
  fail(std::string(name) + ": expected complex64, complex128, float32 or float64, got dtype " + std::to_string(code));
}

// The stack of a boxed kernel. Every value on it is owned by the kernel, so all are taken before any can be refused.
class Arguments {
 public:
  explicit Arguments(StableValue* stack) : next_(stack) {}

  Tensor tensor() { return Tensor(pointer<TensorHandle>(*next_++)); }

  Tensor optional_tensor() {
    auto* value = pointer<StableValue*>(*next_++);
    if (value == nullptr) return Tensor();
    Tensor tensor(pointer<TensorHandle>(*value));
    if (shim.torch_delete_stable_ivalue != nullptr)
      shim.torch_delete_stable_ivalue(value);
    else
      delete value;
    return tensor;
  }

  struct List {
    ListHandle handle;
    explicit List(ListHandle handle) : handle(handle) {}
    List(const List&) = delete;
    ~List() { shim.torch_delete_list(handle); }
  };

  ListHandle list() { return pointer<ListHandle>(*next_++); }

  int64_t integer() { return int64_t(*next_++); }
  bool boolean() { return (*next_++ & 0xff) != 0; }
  double number() {
    double x;
    std::memcpy(&x, next_++, sizeof(x));
    return x;
  }

 private:
  template <class P>
  static P pointer(StableValue value) {
    return reinterpret_cast<P>(uintptr_t(value));
  }

  StableValue* next_;
};

Sizes shape(const char* name, const Arguments::List& list) {
  size_t count;
  CHECKED(torch_list_size, list.handle, &count);
  if (count != 2 && count != 3) fail(std::string(name) + ": expected 2 or 3 numbers, got " + std::to_string(count));
  Sizes sizes;
  sizes.count = int(count);
  for (size_t i = 0; i < count; ++i) {
    StableValue value;
    CHECKED(torch_list_get_item, list.handle, i, &value);
    sizes.values[i] = int64_t(value);
    if (sizes.values[i] < 1 || sizes.values[i] > int64_t(1) << 30)
      fail(std::string(name) + ": expected from 1 to 2^30 points, got " + std::to_string(sizes.values[i]));
  }
  return sizes;
}

// The arguments that all ops end with.
struct Geometry {
  Arguments::List volume_list, image_list;
  int64_t interpolation;
  double oversampling, cutoff;
  bool pairs_once;

  explicit Geometry(Arguments& arguments)
      : volume_list(arguments.list()),
        image_list(arguments.list()),
        interpolation(arguments.integer()),
        oversampling(arguments.number()),
        cutoff(arguments.number()),
        pairs_once(arguments.boolean()) {}
};

template <class Backend>
struct Ops {
  using Problem = typename Backend::Problem;

  static Tensor empty(const Sizes& sizes, int32_t dtype, int32_t device) {
    Sizes strides = sizes;
    int64_t stride = 1;
    for (int a = sizes.count - 1; a >= 0; --a) {
      strides.values[size_t(a)] = stride;
      stride = times(stride, sizes[a] > 1 ? sizes[a] : 1);
    }
    TensorHandle handle;
    if (shim.aoti_torch_empty_strided(sizes.count, sizes.values.data(), strides.values.data(), dtype,
                                      Backend::device_type(), device, &handle) != 0)
      fail("no memory " + std::string(Backend::memory) + " a result of shape " + text(sizes.values.data(), sizes.count));
    Tensor tensor(handle);
    const int64_t size = dtype == shim.aoti_torch_dtype_uint8()        ? 1
                         : dtype == shim.aoti_torch_dtype_float32()    ? 4
                         : dtype == shim.aoti_torch_dtype_complex128() ? 16
                                                                       : 8;
    Backend::allocated(tensor, times(sizes.product(), size));
    return tensor;
  }

  static int32_t device_of(const char* name, const Tensor& tensor) {
    int32_t type, index;
    CHECKED(aoti_torch_get_device_type, tensor.get(), &type);
    if (type != Backend::device_type()) fail(std::string(name) + ": expected a tensor on " + Backend::place);
    CHECKED(aoti_torch_get_device_index, tensor.get(), &index);
    return index;
  }

  static void expect(const char* name, const Tensor& tensor, int32_t device, int32_t dtype, const Sizes& sizes) {
    const int32_t own_device = device_of(name, tensor);
    if (own_device != device)
      fail(std::string(name) + ": expected a tensor on device " + std::to_string(device) + ", got one on device " +
           std::to_string(own_device));
    const int64_t dims = tensor.dims(), *actual = tensor.sizes();
    bool same = dims == sizes.count;
    for (int a = 0; same && a < sizes.count; ++a) same = actual[a] == sizes[a];
    if (!same)
      fail(std::string(name) + ": expected shape " + text(sizes.values.data(), sizes.count) + ", got " +
           text(actual, dims));
    if (tensor.dtype() != dtype) fail(std::string(name) + ": expected the precision of the other tensors");
    bool contiguous;
    CHECKED(aoti_torch_is_contiguous, tensor.get(), &contiguous);
    if (!contiguous) fail(std::string(name) + ": expected a contiguous tensor");
  }

  // The problem of volumes and images of such shapes, without poses.
  static Problem problem_of(const Dtype& dtype, int32_t device, const Sizes& volume, const Sizes& image) {
    Problem problem{};
    problem.size = int32_t(sizeof(problem));
    problem.scalar = dtype.scalar;
    problem.real = dtype.real ? 1 : 0;
    problem.volume_dims = volume.count;
    problem.image_dims = image.count;
    for (int a = 0; a < volume.count; ++a) problem.volume_shape[a] = volume[a];
    for (int a = 0; a < image.count; ++a) problem.image_shape[a] = image[a];
    problem.oversampling = 1;
    problem.volume_stride = volume.stored().product();
    Backend::prepare(problem, device);
    return problem;
  }

  // What the ops have in common: all tensors checked, and the problem for the C API.
  struct Setting {
    Dtype dtype;
    int32_t device;
    Sizes volume_size, image_size;  // stored, of all
    Problem problem{};

    // `data` (volume or images) tells batch and precision.
    Setting(const char* name, const Tensor& data, const Tensor& rotations, const Tensor& shifts, const Geometry& g) {
      const Sizes volume = shape("volume_shape", g.volume_list), image = shape("image_shape", g.image_list);
      dtype = dtype_of(name, data);
      device = device_of(name, data);
      if (data.dims() < 1) fail(std::string(name) + ": expected a batch, got a scalar");
      const int64_t dims = volume.count;
      if (image.count > volume.count)
        fail("image_shape: expected at most " + std::to_string(dims) + " numbers, got " + std::to_string(image.count));
      if (rotations.dims() != 4) fail("rotations: expected 4 dimensions, got " + std::to_string(rotations.dims()));
      const int64_t batch = data.sizes()[0], own = rotations.sizes()[0], poses = rotations.sizes()[1];
      expect("rotations", rotations, device, dtype.real_code, {own == 1 ? 1 : batch, poses, dims, dims});
      volume_size = Sizes{batch}.then(volume.stored());
      image_size = Sizes{batch, poses}.then(image.stored());

      problem = problem_of(dtype, device, volume, image);
      problem.interpolation = g.interpolation < 0 || g.interpolation > 3 ? -1 : int32_t(g.interpolation);
      problem.oversampling = g.oversampling;
      problem.cutoff = g.cutoff;
      problem.pairs_once = g.pairs_once ? 1 : 0;
      problem.batch = batch;
      problem.poses = poses;
      problem.rotations = rotations.data();
      problem.rotation_strides[0] = own == 1 ? 0 : poses * dims * dims;
      problem.rotation_strides[1] = dims * dims;
      if (shifts) {
        if (shifts.dims() != 3) fail("shifts: expected 3 dimensions, got " + std::to_string(shifts.dims()));
        const int64_t own_shifts = shifts.sizes()[0];
        expect("shifts", shifts, device, dtype.real_code, {own_shifts == 1 ? 1 : batch, poses, image.count});
        problem.shifts = shifts.data();
        problem.shift_strides[0] = own_shifts == 1 ? 0 : poses * image.count;
        problem.shift_strides[1] = image.count;
      }
      problem.image_strides[1] = image.stored().product();
      problem.image_strides[0] = times(poses, problem.image_strides[1]);
    }

    // For one call; work of later ones on this stream may have its memory.
    Tensor workspace(int64_t bytes) {
      if (bytes == 0) return Tensor();
      Tensor tensor = empty({bytes}, shim.aoti_torch_dtype_uint8(), device);
      Backend::use_workspace(problem, tensor.mutable_data(), bytes);
      return tensor;
    }
  };

  static void finish(int32_t error) {
    if (error != 0) fail(Backend::message());
  }

  static void forward_project(StableValue* stack, uint64_t, uint64_t) {
    Arguments arguments(stack);
    const Tensor volume = arguments.tensor(), rotations = arguments.tensor(), shifts = arguments.optional_tensor();
    const Geometry geometry(arguments);

    const Setting s("volume", volume, rotations, shifts, geometry);
    expect("volume", volume, s.device, s.dtype.code, s.volume_size);
    Tensor images = empty(s.image_size, s.dtype.code, s.device);
    finish(Backend::forward_project(&s.problem, volume.data(), images.mutable_data()));
    stack[0] = images.release();
  }

  // Boxed kernels are functions without a closure.
  template <bool mates>
  static void backward_project(StableValue* stack, uint64_t, uint64_t) {
    Arguments arguments(stack);
    const Tensor images = arguments.tensor(), weights = arguments.optional_tensor(), rotations = arguments.tensor(),
                 shifts = arguments.optional_tensor();
    const Geometry geometry(arguments);

    Setting s("images", images, rotations, shifts, geometry);
    expect("images", images, s.device, s.dtype.code, s.image_size);
    if (weights) expect("weights", weights, s.device, s.dtype.real_code, s.image_size);
    s.problem.mates = mates ? 1 : 0;
    Tensor volume = empty(s.volume_size, s.dtype.code, s.device);
    Tensor weight_volume = empty(weights ? s.volume_size : Sizes{0}, s.dtype.real_code, s.device);
    const Tensor workspace = s.workspace(Backend::backward_workspace(s.problem, bool(weights)));
    finish(Backend::backward_project(&s.problem, images.data(), weights.data(), volume.mutable_data(),
                                                 weights ? weight_volume.mutable_data() : nullptr));
    stack[0] = volume.release();
    stack[1] = weight_volume.release();
  }

  static void add_projections(StableValue* stack, uint64_t, uint64_t) {
    Arguments arguments(stack);
    const Tensor volume = arguments.tensor(), weight_volume = arguments.tensor(), images = arguments.tensor(),
                 weights = arguments.optional_tensor(), rotations = arguments.tensor(),
                 shifts = arguments.optional_tensor();
    const Geometry geometry(arguments);

    Setting s("images", images, rotations, shifts, geometry);
    expect("volume", volume, s.device, s.dtype.code, s.volume_size);
    expect("images", images, s.device, s.dtype.code, s.image_size);
    if (weights) {
      expect("weights", weights, s.device, s.dtype.real_code, s.image_size);
      expect("weight_volume", weight_volume, s.device, s.dtype.real_code, s.volume_size);
    }
    s.problem.add = 1;
    const Tensor workspace = s.workspace(Backend::backward_workspace(s.problem, bool(weights)));
    finish(Backend::backward_project(&s.problem, images.data(), weights.data(), volume.mutable_data(),
                                     weights ? weight_volume.mutable_data() : nullptr));
  }

  static void project_gradients(StableValue* stack, uint64_t, uint64_t) {
    Arguments arguments(stack);
    const Tensor volume = arguments.tensor(), images = arguments.tensor(), rotations = arguments.tensor(),
                 shifts = arguments.optional_tensor();
    const Geometry geometry(arguments);
    bool need[4];
    for (bool& n : need) n = arguments.boolean();
    need[3] = need[3] && shifts;

    Setting s("volume", volume, rotations, shifts, geometry);
    expect("volume", volume, s.device, s.dtype.code, s.volume_size);
    expect("images", images, s.device, s.dtype.code, s.image_size);
    const auto like = [&](bool needed, const Tensor& tensor) {
      Sizes sizes{0};
      if (needed) {
        sizes.count = int(tensor.dims());
        for (int a = 0; a < sizes.count; ++a) sizes.values[size_t(a)] = tensor.sizes()[a];
      }
      return empty(sizes, tensor.dtype(), s.device);
    };
    Tensor gradients[4] = {like(need[0], volume), like(need[1], images), like(need[2], rotations),
                           like(need[3], shifts ? shifts : rotations)};
    void* data[4];
    for (int i = 0; i < 4; ++i) data[i] = need[i] ? gradients[i].mutable_data() : nullptr;
    if (need[0] || need[1] || need[2] || need[3]) {
      const Tensor workspace = s.workspace(Backend::gradients_workspace(s.problem, need[0], need[2] || need[3]));
      finish(Backend::project_gradients(&s.problem, volume.data(), images.data(), data[0], data[1], data[2],
                                                     data[3]));
    }
    for (int i = 0; i < 4; ++i) stack[i] = gradients[i].release();
  }

  static void add_mates(StableValue* stack, uint64_t, uint64_t) {
    Arguments arguments(stack);
    const Tensor volume = arguments.tensor(), weight_volume = arguments.tensor();
    const Arguments::List list(arguments.list());

    const Sizes size = shape("volume_shape", list);
    const Dtype dtype = dtype_of("volume", volume);
    const int32_t device = device_of("volume", volume);
    if (volume.dims() < 1) fail("volume: expected a batch, got a scalar");
    const Sizes all = Sizes{volume.sizes()[0]}.then(size.stored());
    expect("volume", volume, device, dtype.code, all);
    const bool weighted = !(weight_volume.dims() == 1 && weight_volume.sizes()[0] == 0);
    if (weighted) expect("weight_volume", weight_volume, device, dtype.real_code, all);
    Problem problem = problem_of(dtype, device, size, size);
    problem.batch = all[0];
    finish(Backend::add_mates(&problem, volume.mutable_data(),
                                          weighted ? weight_volume.mutable_data() : nullptr));
  }

  static int32_t register_all(int32_t define_schemas) {
    static const Operator operators[] = {
        {"forward_project", "forward_project(Tensor volume, Tensor rotations, Tensor? shifts, " GEOMETRY ") -> Tensor",
         forward_project},
        {"backward_project",
         "backward_project(Tensor images, Tensor? weights, Tensor rotations, Tensor? shifts, " GEOMETRY
         ") -> (Tensor, Tensor)",
         backward_project<false>},
        {"insert_projections",
         "insert_projections(Tensor images, Tensor? weights, Tensor rotations, Tensor? shifts, " GEOMETRY
         ") -> (Tensor, Tensor)",
         backward_project<true>},
        {"project_gradients",
         "project_gradients(Tensor volume, Tensor images, Tensor rotations, Tensor? shifts, " GEOMETRY
         ", bool need_volume, bool need_images, bool need_rotations, bool need_shifts)"
         " -> (Tensor, Tensor, Tensor, Tensor)",
         project_gradients},
        {"add_projections_",
         "add_projections_(Tensor(a!) volume, Tensor(b!) weight_volume, Tensor images, Tensor? weights, "
         "Tensor rotations, Tensor? shifts, " GEOMETRY ") -> ()",
         add_projections},
        {"add_mates_", "add_mates_(Tensor(a!) volume, Tensor(b!) weight_volume, SymInt[] volume_shape) -> ()",
         add_mates},
    };
    return guarded([&] {
      // Never taken back: registrations live as long as the process.
      static std::mutex mutex;
      static LibraryHandle definitions = nullptr, kernels = nullptr;
      const std::lock_guard<std::mutex> lock(mutex);
      Backend::check_kernels();
      if (kernels == nullptr) {
        Shim found;
        const char* missing = found.find();
        if (missing != nullptr)
          refuse("expected torch 2.10 or later in the process, but there is no function %s", missing);
        shim = found;
      }
      if (define_schemas != 0 && definitions == nullptr) {
        CHECKED(aoti_torch_library_init_fragment, kNamespace, __FILE__, __LINE__, &definitions);
        // Refused where the Python core has defined them, which is as well.
        for (const Operator& op : operators) shim.aoti_torch_library_def(definitions, op.schema);
      }
      if (kernels == nullptr) {
        Backend::begin();
        CHECKED(aoti_torch_library_init_impl, kNamespace, Backend::key, __FILE__, __LINE__, &kernels);
        for (const Operator& op : operators) CHECKED(torch_library_impl, kernels, op.name, op.kernel, Shim::kRelease);
      }
    });
  }

 private:
  struct Operator {
    const char* name;
    const char* schema;
    BoxedKernel kernel;
  };
};

}  // namespace
}  // namespace torch_projectors
