// The C API: arguments are checked, every one, before any work, and handed to the kernels.
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <exception>
#include <initializer_list>
#include <limits>
#include <new>

#include "problem.h"
#include "torch_projectors/checked.h"
#include "torch_projectors_cuda.h"

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

namespace torch_projectors {

template <class T>
Kernels kernels_of();
template <>
Kernels kernels_of<float>();
template <>
Kernels kernels_of<double>();

Kernels kernels(Scalar scalar) { return scalar == Scalar::float32 ? kernels_of<float>() : kernels_of<double>(); }

namespace {

// Without allocation, so that it can tell of a lack of memory.
thread_local char message[1024] = "";

constexpr const char* kArchitectures = TEXT(TORCH_PROJECTORS_CUDA_ARCHITECTURES);

int32_t say(int32_t code, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof(message), format, arguments);
  va_end(arguments);
  return code;
}

int32_t device_failure(int code) {
#if defined(__CUDACC__)
  const cudaError_t error = cudaError_t(code);
  (void)cudaGetLastError();  // not the next call's
  int major = 0, minor = 0, device = 0, driver = 0;
  switch (error) {
    case cudaErrorMemoryAllocation:
      return say(TORCH_PROJECTORS_CUDA_MEMORY, "out of device memory");
    case cudaErrorNoDevice:
      return say(TORCH_PROJECTORS_CUDA_DEVICE,
                 "no CUDA device was found: expected an NVIDIA GPU, not hidden from this process");
    case cudaErrorInsufficientDriver:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorStubLibrary:
      (void)cudaDriverGetVersion(&driver);
      if (driver == 0) return say(TORCH_PROJECTORS_CUDA_DEVICE, "no NVIDIA driver was found");
      return say(TORCH_PROJECTORS_CUDA_DEVICE,
                 "the NVIDIA driver is too old: it serves CUDA up to %d.%d, and this library was built with CUDA %d.%d",
                 driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    case cudaErrorNoKernelImageForDevice:
      (void)cudaGetDevice(&device);
      (void)cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
      (void)cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
      return say(TORCH_PROJECTORS_CUDA_DEVICE,
                 "this library was built for compute capabilities %s, and device %d has %d%d; build it there with "
                 "TORCH_PROJECTORS_CUDA_ARCHITECTURES=%d%d",
                 kArchitectures, device, major, minor, major, minor);
    default:
      return say(TORCH_PROJECTORS_CUDA_DEVICE, "CUDA: %s (%s)", cudaGetErrorString(error), cudaGetErrorName(error));
  }
#else
  return say(TORCH_PROJECTORS_CUDA_DEVICE, "error %d", code);
#endif
}

}  // namespace

void refuse(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof(message), format, arguments);
  va_end(arguments);
  throw Refused();
}

int32_t failure() {
  try {
    throw;
  } catch (const Refused&) {
    return TORCH_PROJECTORS_CUDA_INVALID;
  } catch (const DeviceError& error) {
    return device_failure(error.code);
  } catch (const std::bad_alloc&) {
    return say(TORCH_PROJECTORS_CUDA_MEMORY, "out of memory");
  } catch (const std::exception& error) {
    return say(TORCH_PROJECTORS_CUDA_FAILED, "%s", error.what());
  } catch (...) {
    return say(TORCH_PROJECTORS_CUDA_FAILED, "an exception of unknown type");
  }
}

void begin_call() { message[0] = 0; }

namespace {

// Arguments.

constexpr int64_t kLongestAxis = int64_t(1) << 30;

// What two axes of strides and a block of contiguous entries span.
struct Layout {
  int64_t counts[2], strides[2], entries;

  bool empty() const { return counts[0] == 0 || counts[1] == 0 || entries == 0; }

  int64_t span() const {
    return plus(plus(times(counts[0] - 1, strides[0]), times(counts[1] - 1, strides[1])), entries);
  }

  bool overlaps_itself() const {
    int64_t reach = entries;
    const int inner = strides[0] < strides[1] ? 0 : 1;
    for (const int axis : {inner, 1 - inner}) {
      if (counts[axis] <= 1) continue;
      if (strides[axis] < reach) return true;
      reach = plus(times(counts[axis] - 1, strides[axis]), reach);
    }
    return false;
  }
};

struct Array {
  const char* name;
  uintptr_t begin, end;
  bool output;
};

struct Call {
  Problem problem;
  Scalar scalar;
  bool real;
  bool any;  // image at all
  Layout volumes, images, rotations, shifts;
  int64_t number_size;
  void* workspace;
  int64_t workspace_bytes;
  Array arrays[8];
  int array_count;

  explicit Call(const torch_projectors_cuda_problem* q) {
    if (q == nullptr) refuse("problem: expected a pointer, got NULL");
    if (q->size != int32_t(sizeof(torch_projectors_cuda_problem)))
      refuse("size: expected %d, as in this version of the library, got %d", int(sizeof(torch_projectors_cuda_problem)),
             int(q->size));
    if (q->scalar != TORCH_PROJECTORS_CUDA_FLOAT32 && q->scalar != TORCH_PROJECTORS_CUDA_FLOAT64)
      refuse("scalar: expected 0 (float) or 1 (double), got %d", int(q->scalar));
    if (q->real != 0 && q->real != 1) refuse("real: expected 0 or 1, got %d", int(q->real));
    if (q->pairs_once != 0 && q->pairs_once != 1) refuse("pairs_once: expected 0 or 1, got %d", int(q->pairs_once));
    if (q->interpolation != TORCH_PROJECTORS_CUDA_NEAREST && q->interpolation != TORCH_PROJECTORS_CUDA_LINEAR &&
        q->interpolation != TORCH_PROJECTORS_CUDA_CUBIC)
      refuse("interpolation: expected 0 (nearest), 1 (linear) or 3 (cubic), got %d", int(q->interpolation));
    const int v = q->volume_dims, i = q->image_dims;
    if (!((v == 2 && i == 2) || (v == 3 && i == 2) || (v == 3 && i == 3)))
      refuse("volume_dims, image_dims: expected 2 and 2, 3 and 2, or 3 and 3, got %d and %d", v, i);
    if (!(q->oversampling > 0) || std::isinf(q->oversampling))
      refuse("oversampling: expected a finite number > 0, got %g", q->oversampling);
    if (!(q->cutoff >= 0)) refuse("cutoff: expected a number >= 0, got %g", q->cutoff);
    if (q->batch < 0) refuse("batch: expected a number >= 0, got %lld", static_cast<long long>(q->batch));
    if (q->poses < 0) refuse("poses: expected a number >= 0, got %lld", static_cast<long long>(q->poses));
    if (q->deterministic != 0 && q->deterministic != 1)
      refuse("deterministic: expected 0 or 1, got %d", int(q->deterministic));
    if (q->real == 1 && q->shifts != nullptr) refuse("shifts: expected NULL with real data, got a pointer");

    problem.volume_dims = v;
    problem.image_dims = i;
    problem.interpolation = q->interpolation;
    problem.oversampling = q->oversampling;
    problem.cutoff = q->cutoff;
    problem.pairs_once = q->pairs_once == 1;
    problem.batch = q->batch;
    problem.poses = q->poses;
    problem.rotations = q->rotations;
    problem.shifts = q->shifts;
    const int64_t volume_size = shape("volume_shape", q->volume_shape, v, problem.volume_shape);
    const int64_t image_size = shape("image_shape", q->image_shape, i, problem.image_shape);
    // Kernels place entries within a plane, and rows, by 32-bit numbers.
    planes("volume_shape", problem.volume_shape);
    planes("image_shape", problem.image_shape);
    if (times(times(q->batch, q->poses), image_size) > kMost / 8)
      refuse("batch, poses: expected less than 2^60 samples, got %lld x %lld images of %lld",
             static_cast<long long>(q->batch), static_cast<long long>(q->poses), static_cast<long long>(image_size));

    for (int a = 0; a < 2; ++a) {
      problem.rotation_strides[a] = q->rotation_strides[a];
      problem.shift_strides[a] = q->shift_strides[a];
      problem.image_strides[a] = q->image_strides[a];
    }
    problem.volume_stride = q->volume_stride;
    volumes = {{q->batch, 1}, {q->volume_stride, 0}, volume_size};
    images = {{q->batch, q->poses}, {q->image_strides[0], q->image_strides[1]}, image_size};
    rotations = {{q->batch, q->poses}, {q->rotation_strides[0], q->rotation_strides[1]}, int64_t(v) * v};
    shifts = {{q->batch, q->poses}, {q->shift_strides[0], q->shift_strides[1]}, i};

    scalar = q->scalar == TORCH_PROJECTORS_CUDA_FLOAT32 ? Scalar::float32 : Scalar::float64;
    real = q->real == 1;
    any = q->batch > 0 && q->poses > 0;
    number_size = scalar == Scalar::float32 ? 4 : 8;
    array_count = 0;
    add("rotations", q->rotations, rotations, false, true);
    if (q->shifts != nullptr) add("shifts", q->shifts, shifts, false, true);

    problem.deterministic = q->deterministic == 1;
    problem.stream = static_cast<Stream>(q->stream);
    workspace = q->workspace;
    workspace_bytes = q->workspace_bytes;
  }

  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // An array of complex numbers, unless the data are real or it is `of_reals`.
  void add(const char* name, const void* data, const Layout& layout, bool output, bool of_reals) {
    for (int axis = 0; axis < 2; ++axis)
      if (layout.strides[axis] < 0)
        refuse("%s: expected strides >= 0, got %lld", name, static_cast<long long>(layout.strides[axis]));
    if (layout.empty()) return;
    if (data == nullptr) refuse("%s: expected a pointer, got NULL", name);
    const uintptr_t begin = reinterpret_cast<uintptr_t>(data);
    const int64_t size = entry_size(of_reals);
    if (begin % uintptr_t(size) != 0) refuse("%s: expected an address that is a multiple of %d", name, int(size));
    const int64_t bytes = times(layout.span(), size);
    if (bytes == kMost || uint64_t(bytes) > uint64_t(std::numeric_limits<uintptr_t>::max() - begin))
      refuse("%s: expected strides within memory, got %lld and %lld for %lld x %lld blocks", name,
             static_cast<long long>(layout.strides[0]), static_cast<long long>(layout.strides[1]),
             static_cast<long long>(layout.counts[0]), static_cast<long long>(layout.counts[1]));
    if (output && layout.overlaps_itself())
      refuse("%s: expected strides that keep its %lld x %lld blocks of %lld entries apart, got %lld and %lld", name,
             static_cast<long long>(layout.counts[0]), static_cast<long long>(layout.counts[1]),
             static_cast<long long>(layout.entries), static_cast<long long>(layout.strides[0]),
             static_cast<long long>(layout.strides[1]));
    const Array array{name, begin, begin + uintptr_t(bytes), output};
    for (int a = 0; a < array_count; ++a)
      if ((output || arrays[a].output) && array.begin < arrays[a].end && arrays[a].begin < array.end)
        refuse("%s: expected memory that no other array is in, got some of %s", name, arrays[a].name);
    arrays[array_count++] = array;
  }

  static void planes(const char* name, const int64_t (&n)[3]) {
    constexpr int64_t most = std::numeric_limits<int32_t>::max();
    if (times(n[0] / 2 + 1, n[1]) > most || times(n[1], n[2]) > most)
      refuse("%s: expected planes of less than 2^31 entries, got %lld x %lld x %lld points", name,
             static_cast<long long>(n[2]), static_cast<long long>(n[1]), static_cast<long long>(n[0]));
  }

  // As the kernels have it, x first. Returns how many entries are stored.
  static int64_t shape(const char* name, const int64_t* from, int dims, int64_t (&to)[3]) {
    int64_t size = 1;
    for (int a = 0; a < dims; ++a) {
      const int64_t n = from[dims - 1 - a];
      if (n < 1 || n > kLongestAxis)
        refuse("%s: expected from 1 to 2^30 points, got %lld", name, static_cast<long long>(n));
      to[a] = n;
      size = times(size, a == 0 ? n / 2 + 1 : n);
    }
    for (int a = dims; a < 3; ++a) to[a] = 1;
    return size;
  }

  int64_t entry_size(bool of_reals) const { return of_reals || real ? number_size : 2 * number_size; }

  // Where the layout has its blocks, and nowhere else.
  void zero(void* data, const Layout& layout, bool of_reals) const {
    if (data == nullptr || layout.empty()) return;
    const int64_t size = entry_size(of_reals);
    int64_t blocks[2] = {layout.counts[0], layout.counts[1]}, entries = layout.entries;
    for (int axis = 1; axis >= 0; --axis) {  // at once what is without gaps
      if (blocks[axis] > 1 && layout.strides[axis] != entries) break;
      entries *= blocks[axis];
      blocks[axis] = 1;
    }
    for (int64_t i = 0; i < blocks[0]; ++i)
      for (int64_t j = 0; j < blocks[1]; ++j)
        clear(static_cast<char*>(data) + (i * layout.strides[0] + j * layout.strides[1]) * size, entries * size,
              problem.stream);
  }

  // The workspace, of at least so many bytes.
  void* work(int64_t bytes) {
    if (bytes == 0) return nullptr;
    if (workspace == nullptr || workspace_bytes < bytes)
      refuse("workspace: expected %lld bytes, got %lld", static_cast<long long>(bytes),
             static_cast<long long>(workspace == nullptr ? 0 : workspace_bytes));
    if (reinterpret_cast<uintptr_t>(workspace) % 16 != 0)
      refuse("workspace: expected an address that is a multiple of 16");
    return workspace;
  }

  bool in_tiles() const { return any && scalar == Scalar::float32 && problem.poses > kPosesAtOnce; }

  int64_t insertion_bytes(bool weighted) const {
    if (!in_tiles()) return 0;
    return times(times(problem.batch, volumes.entries), entry_size(false) + (weighted ? number_size : 0));
  }

  int64_t gradient_bytes(bool poses) const {
    const int64_t sums = problem.image_dims * (problem.volume_dims + 1);
    if (!any || !poses) return 0;
    return times(times(times(problem.batch, problem.poses), parts_of_image(problem)), sums * number_size);
  }

  // Images added to volumes: a tile of poses after the other, if there are many.
  void insert(const void* images, const void* weights, void* volume, void* weight_volume) {
    const Kernels k = kernels(scalar);
    zero(volume, volumes, false);
    zero(weight_volume, volumes, true);
    if (!any) return;
    if (!in_tiles()) return k.backproject(problem, real, images, weights, volume, weight_volume);
    const int64_t numbers = entry_size(false) / number_size, entries = problem.batch * volumes.entries;
    char* const tile = static_cast<char*>(work(insertion_bytes(weights != nullptr)));
    char* const weight_tile = weights == nullptr ? nullptr : tile + entries * entry_size(false);
    for (int64_t first = 0; first < problem.poses; first += kPosesAtOnce) {
      Problem some = problem;
      some.poses = problem.poses - first < kPosesAtOnce ? problem.poses - first : kPosesAtOnce;
      some.volume_stride = volumes.entries;
      const auto from = [&](const void* data, int64_t stride, int64_t size) -> const void* {
        return data == nullptr ? nullptr : static_cast<const char*>(data) + first * stride * size;
      };
      some.rotations = from(problem.rotations, problem.rotation_strides[1], number_size);
      some.shifts = from(problem.shifts, problem.shift_strides[1], number_size);
      clear(tile, insertion_bytes(weights != nullptr), problem.stream);
      k.backproject(some, real, from(images, problem.image_strides[1], entry_size(false)),
                    from(weights, problem.image_strides[1], number_size), tile, weight_tile);
      for (int64_t b = 0; b < problem.batch; ++b) {
        const int64_t to = b * problem.volume_stride, size = volumes.entries;
        k.accumulate(problem.stream, size * numbers, tile + b * size * entry_size(false),
                     static_cast<char*>(volume) + to * entry_size(false));
        if (weights != nullptr)
          k.accumulate(problem.stream, size, weight_tile + b * size * number_size,
                       static_cast<char*>(weight_volume) + to * number_size);
      }
    }
  }
};

// Gradients of what a batch shares are summed over it.
Layout summed(Layout layout) {
  if (layout.strides[0] == 0) layout.counts[0] = 1;
  return layout;
}

}  // namespace
}  // namespace torch_projectors

using namespace torch_projectors;

int32_t torch_projectors_cuda_forward_project(const torch_projectors_cuda_problem* problem, const void* volume,
                                              void* images) {
  return guarded([&] {
    Call call(problem);
    if (call.any) call.add("volume", volume, call.volumes, false, false);
    call.add("images", images, call.images, true, false);
    if (!call.any) return;
    const OnDevice device(problem->device);
    kernels(call.scalar).project(call.problem, call.real, volume, images);
  });
}

int32_t torch_projectors_cuda_backward_project(const torch_projectors_cuda_problem* problem, const void* images,
                                               const void* weights, void* volume, void* weight_volume) {
  return guarded([&] {
    Call call(problem);
    call.add("images", images, call.images, false, false);
    if (weight_volume != nullptr) call.add("weights", weights, call.images, false, true);
    if (weight_volume == nullptr && weights != nullptr)
      refuse("weight_volume: expected a pointer with weights, got NULL");
    call.add("volume", volume, call.volumes, true, false);
    if (weight_volume != nullptr) call.add("weight_volume", weight_volume, call.volumes, true, true);
    if (call.volumes.empty()) return;
    const OnDevice device(problem->device);
    call.insert(images, weights, volume, weight_volume);
  });
}

int32_t torch_projectors_cuda_project_gradients(const torch_projectors_cuda_problem* problem, const void* volume,
                                                const void* images, void* grad_volume, void* grad_images,
                                                void* grad_rotations, void* grad_shifts) {
  return guarded([&] {
    Call call(problem);
    const bool reads_volume = grad_images != nullptr || grad_rotations != nullptr || grad_shifts != nullptr;
    if (grad_shifts != nullptr && call.problem.shifts == nullptr)
      refuse("grad_shifts: expected NULL without shifts, got a pointer");
    const Layout rotations = summed(call.rotations), shifts = summed(call.shifts);
    if (call.any && reads_volume) call.add("volume", volume, call.volumes, false, false);
    if (grad_volume != nullptr || reads_volume) call.add("images", images, call.images, false, false);
    if (grad_volume != nullptr) call.add("grad_volume", grad_volume, call.volumes, true, false);
    if (grad_images != nullptr) call.add("grad_images", grad_images, call.images, true, false);
    if (grad_rotations != nullptr) call.add("grad_rotations", grad_rotations, rotations, true, true);
    if (grad_shifts != nullptr) call.add("grad_shifts", grad_shifts, shifts, true, true);
    if (call.volumes.empty() && rotations.empty() && shifts.empty()) return;
    const OnDevice device(problem->device);
    if (!call.any) {
      call.zero(grad_volume, call.volumes, false);
      call.zero(grad_rotations, rotations, true);
      call.zero(grad_shifts, shifts, true);
      return;
    }
    // One after the other, so they share the workspace.
    void* sums = call.work(call.gradient_bytes(grad_rotations != nullptr || grad_shifts != nullptr));
    if (reads_volume)
      kernels(call.scalar)
          .gradients(call.problem, call.real, volume, images, grad_images, grad_rotations, grad_shifts, sums);
    if (grad_volume != nullptr) call.insert(images, nullptr, grad_volume, nullptr);
  });
}

int32_t torch_projectors_cuda_add_mates(const torch_projectors_cuda_problem* problem, void* volume,
                                        void* weight_volume) {
  return guarded([&] {
    Call call(problem);
    call.add("volume", volume, call.volumes, true, false);
    if (weight_volume != nullptr) call.add("weight_volume", weight_volume, call.volumes, true, true);
    if (call.volumes.empty()) return;
    const OnDevice device(problem->device);
    kernels(call.scalar).add_mates(call.problem, call.real, volume, weight_volume);
  });
}

int32_t torch_projectors_cuda_backward_workspace(const torch_projectors_cuda_problem* problem, int32_t weighted,
                                                 int64_t* bytes) {
  return guarded([&] { *bytes = Call(problem).insertion_bytes(weighted != 0); });
}

int32_t torch_projectors_cuda_gradients_workspace(const torch_projectors_cuda_problem* problem, int32_t need_volume,
                                                  int32_t need_poses, int64_t* bytes) {
  return guarded([&] {
    const Call call(problem);
    const int64_t insertion = need_volume != 0 ? call.insertion_bytes(false) : 0;
    const int64_t gradients = call.gradient_bytes(need_poses != 0);
    *bytes = insertion > gradients ? insertion : gradients;
  });
}

int32_t torch_projectors_cuda_check_device(int32_t number) {
  return guarded([&] {
    const OnDevice device(number);
    check_architecture();
  });
}

const char* torch_projectors_cuda_message(void) { return message; }

const char* torch_projectors_cuda_architectures(void) { return kArchitectures; }

const char* torch_projectors_cuda_version(void) { return TEXT(TORCH_PROJECTORS_VERSION); }

#if defined(TORCH_PROJECTORS_HOST)
extern "C" TORCH_PROJECTORS_CUDA_API void torch_projectors_cuda_host_backwards(int32_t last_first) {
  backwards() = last_first != 0;
}
#endif
