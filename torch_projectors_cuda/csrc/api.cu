// The C API: arguments are checked, every one, before any work, and handed to the kernels.
#include "problem.h"
#include "torch_projectors/call.h"
#include "torch_projectors_cuda.h"

namespace torch_projectors {

template <class T>
Kernels kernels_of();
template <>
Kernels kernels_of<float>();
template <>
Kernels kernels_of<double>();

Kernels kernels(Scalar scalar) { return scalar == Scalar::float32 ? kernels_of<float>() : kernels_of<double>(); }

namespace {

constexpr const char* kArchitectures = TEXT(TORCH_PROJECTORS_CUDA_ARCHITECTURES);

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

int32_t failure() {
  return failure_beside([] {
    try {
      throw;
    } catch (const DeviceError& error) {
      return device_failure(error.code);
    }
  });
}

namespace {

// Arguments.

static_assert(kInvalid == TORCH_PROJECTORS_CUDA_INVALID && kOutOfMemory == TORCH_PROJECTORS_CUDA_MEMORY &&
                  kFailed == TORCH_PROJECTORS_CUDA_FAILED && kFloat32 == TORCH_PROJECTORS_CUDA_FLOAT32 &&
                  kFloat64 == TORCH_PROJECTORS_CUDA_FLOAT64 && Nearest::code == TORCH_PROJECTORS_CUDA_NEAREST &&
                  Linear::code == TORCH_PROJECTORS_CUDA_LINEAR && Cubic::code == TORCH_PROJECTORS_CUDA_CUBIC,
              "what all backends share");

struct CudaCall : Call<torch_projectors_cuda_problem, Problem, true> {
  void* workspace;
  int64_t workspace_bytes;

  explicit CudaCall(const torch_projectors_cuda_problem* q)
      : Call(q), workspace(q->workspace), workspace_bytes(q->workspace_bytes) {
    if (q->deterministic != 0 && q->deterministic != 1)
      refuse("deterministic: expected 0 or 1, got %d", int(q->deterministic));
    // Kernels place entries within a plane, and rows, by 32-bit numbers.
    planes("volume_shape", problem.volume_shape);
    planes("image_shape", problem.image_shape);
    problem.deterministic = q->deterministic == 1;
    problem.stream = static_cast<Stream>(q->stream);
  }

  static void planes(const char* name, const int64_t (&n)[3]) {
    constexpr int64_t most = std::numeric_limits<int32_t>::max();
    if (times(n[0] / 2 + 1, n[1]) > most || times(n[1], n[2]) > most)
      refuse("%s: expected planes of less than 2^31 entries, got %lld x %lld x %lld points", name,
             static_cast<long long>(n[2]), static_cast<long long>(n[1]), static_cast<long long>(n[0]));
  }

  void zero(void* data, const Layout& layout, bool of_reals) const {
    Call::zero(data, layout, of_reals, [&](void* from, int64_t bytes) { clear(from, bytes, problem.stream); });
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

  // Images added to volumes, and the mates of all.
  void insert(const void* images, const void* weights, void* volume, void* weight_volume, bool by_bricks = false) {
    add_images(images, weights, volume, weight_volume, by_bricks);
    if (problem.mates) kernels(scalar).add_mates(problem, real, volume, weight_volume);
  }

 private:
  // A tile of poses after the other, if there are many.
  void add_images(const void* images, const void* weights, void* volume, void* weight_volume, bool by_bricks) {
    const Kernels k = kernels(scalar);
    const auto backproject = by_bricks ? k.backproject_bricks : k.backproject;
    if (!problem.add) {
      zero(volume, volumes, false);
      zero(weight_volume, volumes, true);
    }
    if (!any) return;
    if (!in_tiles()) return backproject(problem, real, images, weights, volume, weight_volume);
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
      backproject(some, real, from(images, problem.image_strides[1], entry_size(false)),
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

}  // namespace
}  // namespace torch_projectors

using namespace torch_projectors;

int32_t torch_projectors_cuda_forward_project(const torch_projectors_cuda_problem* problem, const void* volume,
                                              void* images) {
  return guarded([&] {
    CudaCall call(problem);
    call.forward_project(volume, images);
    if (!call.any) return;
    const OnDevice device(problem->device);
    kernels(call.scalar).project(call.problem, call.real, volume, images);
  });
}

int32_t torch_projectors_cuda_backward_project(const torch_projectors_cuda_problem* problem, const void* images,
                                               const void* weights, void* volume, void* weight_volume) {
  return guarded([&] {
    CudaCall call(problem);
    call.backward_project(images, weights, volume, weight_volume);
    if (call.volumes.empty()) return;
    const OnDevice device(problem->device);
    call.insert(images, weights, volume, weight_volume);
  });
}

int32_t torch_projectors_cuda_project_gradients(const torch_projectors_cuda_problem* problem, const void* volume,
                                                const void* images, void* grad_volume, void* grad_images,
                                                void* grad_rotations, void* grad_shifts) {
  return guarded([&] {
    CudaCall call(problem);
    call.project_gradients(volume, images, grad_volume, grad_images, grad_rotations, grad_shifts);
    if (call.volumes.empty() && call.grad_rotations.empty() && call.grad_shifts.empty()) return;
    const OnDevice device(problem->device);
    if (!call.any) {
      call.zero(grad_volume, call.volumes, false);
      call.zero(grad_rotations, call.grad_rotations, true);
      call.zero(grad_shifts, call.grad_shifts, true);
      return;
    }
    // One after the other, so they share the workspace.
    void* sums = call.work(call.gradient_bytes(grad_rotations != nullptr || grad_shifts != nullptr));
    if (grad_images != nullptr || grad_rotations != nullptr || grad_shifts != nullptr)
      kernels(call.scalar)
          .gradients(call.problem, call.real, volume, images, grad_images, grad_rotations, grad_shifts, sums);
    if (grad_volume != nullptr) call.insert(images, nullptr, grad_volume, nullptr);
  });
}

int32_t torch_projectors_cuda_add_mates(const torch_projectors_cuda_problem* problem, void* volume,
                                        void* weight_volume) {
  return guarded([&] {
    CudaCall call(problem);
    call.add_mates(volume, weight_volume);
    if (call.volumes.empty()) return;
    const OnDevice device(problem->device);
    kernels(call.scalar).add_mates(call.problem, call.real, volume, weight_volume);
  });
}

int32_t torch_projectors_cuda_backward_workspace(const torch_projectors_cuda_problem* problem, int32_t weighted,
                                                 int64_t* bytes) {
  return guarded([&] { *bytes = CudaCall(problem).insertion_bytes(weighted != 0); });
}

int32_t torch_projectors_cuda_gradients_workspace(const torch_projectors_cuda_problem* problem, int32_t need_volume,
                                                  int32_t need_poses, int64_t* bytes) {
  return guarded([&] {
    const CudaCall call(problem);
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

// Not of the API: backward_project by a schedule that is measured beside it, as bricks.h has it.
extern "C" TORCH_PROJECTORS_CUDA_API int32_t torch_projectors_cuda_trial_bricks(
    const torch_projectors_cuda_problem* problem, const void* images, const void* weights, void* volume,
    void* weight_volume) {
  return guarded([&] {
    CudaCall call(problem);
    call.backward_project(images, weights, volume, weight_volume);
    if (call.volumes.empty()) return;
    const OnDevice device(problem->device);
    call.insert(images, weights, volume, weight_volume, true);
  });
}

// Not of the API: backward_project, with weights and in float, by a schedule that is measured beside it. The workspace
// has 16 bytes for every entry of all volumes.
extern "C" TORCH_PROJECTORS_CUDA_API int32_t torch_projectors_cuda_trial_interleaved(
    const torch_projectors_cuda_problem* problem, const void* images, const void* weights, void* volume,
    void* weight_volume) {
  return guarded([&] {
    CudaCall call(problem);
    if (call.scalar != Scalar::float32 || call.real) refuse("scalar, real: expected 0 and 0");
    if (weight_volume == nullptr) refuse("weight_volume: expected a pointer, got NULL");
    call.backward_project(images, weights, volume, weight_volume);
    if (call.volumes.empty()) return;
    const OnDevice device(problem->device);
    const int64_t bytes = times(times(call.problem.batch, call.volumes.entries), int64_t(sizeof(Quad)));
    void* sums = call.work(bytes);
    clear(sums, bytes, call.problem.stream);
    kernels(call.scalar)
        .backproject_interleaved(call.problem, images, weights, sums, volume, weight_volume);
  });
}

#if defined(TORCH_PROJECTORS_HOST)
extern "C" TORCH_PROJECTORS_CUDA_API void torch_projectors_cuda_host_backwards(int32_t last_first) {
  backwards() = last_first != 0;
}
#endif
