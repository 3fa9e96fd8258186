// The ops of torch_projectors, registered with the torch that is in the process.
#include "torch_projectors/torch_ops.h"

#include "torch_projectors_cuda.h"

namespace torch_projectors {
namespace {

// In the library that a torch without CUDA lacks, so it is not looked for until it is needed.
void* current_stream(int32_t device) {
#if defined(TORCH_PROJECTORS_HOST)
  return static_cast<void>(device), nullptr;
#else
  using Function = int32_t (*)(int32_t, void**);
  static const Function function =
      reinterpret_cast<Function>(symbol(torch_library("torch_cuda"), "aoti_torch_get_current_cuda_stream"));
  if (function == nullptr)
    fail("expected a torch with CUDA in the process, but there is no function aoti_torch_get_current_cuda_stream");
  void* stream;
  check(function(device, &stream), "aoti_torch_get_current_cuda_stream");
  return stream;
#endif
}

// Whether torch.use_deterministic_algorithms(True) holds. The stable interface does not tell; these two have had their
// names since torch 1.8.
bool deterministic() {
#if defined(_WIN32)
  const char *context = "?globalContext@at@@YAAEAVContext@1@XZ",
             *asked = "?deterministicAlgorithms@Context@at@@QEBA_NXZ";
#else
  const char *context = "_ZN2at13globalContextEv", *asked = "_ZNK2at7Context23deterministicAlgorithmsEv";
#endif
  using Context = void* (*)();
  using Asked = bool (*)(const void*);
  static void* const library = torch_library("torch_cpu");
  static const Context the_context = reinterpret_cast<Context>(symbol(library, context));
  static const Asked is_asked = reinterpret_cast<Asked>(symbol(library, asked));
  // Without an answer, be safe.
  return the_context == nullptr || is_asked == nullptr || is_asked(the_context());
}

struct Cuda {
  using Problem = torch_projectors_cuda_problem;
  static constexpr const char *place = "a CUDA device", *memory = "on the device for";

#if defined(TORCH_PROJECTORS_HOST)  // tests, on host memory
  static constexpr const char* key = "CPU";
  static int32_t device_type() { return shim.aoti_torch_device_type_cpu(); }
#else
  static constexpr const char* key = "CUDA";
  static int32_t device_type() { return shim.aoti_torch_device_type_cuda(); }
#endif

  static void check_kernels() {}
  static void begin() {}

  static void prepare(Problem& problem, int32_t device) {
    problem.deterministic = deterministic() ? 1 : 0;
    problem.device = device;
    problem.stream = current_stream(device);
  }

  static void allocated(const Tensor&, int64_t) {}

  static int64_t backward_workspace(const Problem& problem, bool weighted) {
    int64_t bytes;
    if (torch_projectors_cuda_backward_workspace(&problem, weighted, &bytes) != 0) fail(message());
    return bytes;
  }

  static int64_t gradients_workspace(const Problem& problem, bool volume, bool poses) {
    int64_t bytes;
    if (torch_projectors_cuda_gradients_workspace(&problem, volume, poses, &bytes) != 0) fail(message());
    return bytes;
  }

  static void use_workspace(Problem& problem, void* data, int64_t bytes) {
    problem.workspace = data;
    problem.workspace_bytes = bytes;
  }

  static constexpr auto forward_project = torch_projectors_cuda_forward_project;
  static constexpr auto backward_project = torch_projectors_cuda_backward_project;
  static constexpr auto project_gradients = torch_projectors_cuda_project_gradients;
  static constexpr auto add_mates = torch_projectors_cuda_add_mates;
  static constexpr auto message = torch_projectors_cuda_message;
};

}  // namespace
}  // namespace torch_projectors

int32_t torch_projectors_cuda_abi(void) { return torch_projectors::kAbi; }

int32_t torch_projectors_cuda_register(int32_t define_schemas) {
  return torch_projectors::Ops<torch_projectors::Cuda>::register_all(define_schemas);
}
