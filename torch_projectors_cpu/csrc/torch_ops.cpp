// The ops of torch_projectors, registered with the torch that is in the process.
#include "torch_projectors/torch_ops.h"

#include <atomic>

#include "torch_projectors_cpu.h"

#if !defined(_WIN32)
#include <pthread.h>
#include <sys/mman.h>
#endif

namespace torch_projectors {
namespace {

// To touch new memory costs a fault for every page of it, which may be more than the work.
void ask_for_large_pages(void* data, int64_t bytes) {
#if defined(__linux__)
  const uintptr_t large = uintptr_t(2) << 20, begin = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (begin + large - 1) / large * large, last = (begin + uintptr_t(bytes)) / large * large;
  if (first < last) (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

// A forked process has none of torch's threads, and torch waits for them for ever.
std::atomic<bool> forked{false};

// On torch's threads.
void run_on_torch(void*, int64_t n, torch_projectors_body body, void* context) {
  struct Loop {
    torch_projectors_body body;
    void* context;
  } loop{body, context};
  shim.torch_parallel_for(
      0, n, 1,
      [](int64_t begin, int64_t end, void* to) {
        const Loop& loop = *static_cast<Loop*>(to);
        loop.body(loop.context, begin, end);
      },
      &loop);
}

struct Cpu {
  using Problem = torch_projectors_problem;
  static constexpr const char *key = "CPU", *place = "the CPU", *memory = "for";

  static void check_kernels() {
    if (*torch_projectors_cpu_level() == 0) refuse("%s", std::string(message()).c_str());
  }

  static void begin() {
#if !defined(_WIN32)
    pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif
  }

  static int32_t device_type() { return shim.aoti_torch_device_type_cpu(); }

  static void prepare(Problem& problem, int32_t) {
    if (forked) {
      uint32_t threads;
      CHECKED(torch_get_num_threads, &threads);
      problem.threads = int32_t(threads);
    } else {
      problem.runner = run_on_torch;
    }
  }

  static void allocated(const Tensor& tensor, int64_t bytes) { ask_for_large_pages(tensor.mutable_data(), bytes); }

  static int64_t backward_workspace(const Problem&, bool) { return 0; }
  static int64_t gradients_workspace(const Problem&, bool, bool) { return 0; }
  static void use_workspace(Problem&, void*, int64_t) {}

  static constexpr auto forward_project = torch_projectors_cpu_forward_project;
  static constexpr auto backward_project = torch_projectors_cpu_backward_project;
  static constexpr auto project_gradients = torch_projectors_cpu_project_gradients;
  static constexpr auto add_mates = torch_projectors_cpu_add_mates;
  static constexpr auto message = torch_projectors_cpu_message;
};

}  // namespace
}  // namespace torch_projectors

int32_t torch_projectors_cpu_abi(void) { return torch_projectors::kAbi; }

int32_t torch_projectors_cpu_register(int32_t define_schemas) {
  return torch_projectors::Ops<torch_projectors::Cpu>::register_all(define_schemas);
}
