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
void prepare_pages(void* data, int64_t bytes) {
#if defined(__linux__)
  const uintptr_t page = 4096, large = uintptr_t(2) << 20;
  const auto down = [](uintptr_t x, uintptr_t to) { return x / to * to; };
  const uintptr_t begin = down(reinterpret_cast<uintptr_t>(data), page), end = reinterpret_cast<uintptr_t>(data) + bytes;
  const uintptr_t first = down(begin + large - 1, large), last = down(end, large);
  if (first >= last) return;
  const auto advise = [](uintptr_t from, uintptr_t to, int advice) {
    if (from < to) (void)madvise(reinterpret_cast<void*>(from), to - from, advice);
  };
  advise(first, last, MADV_HUGEPAGE);
  // What is left at both ends, at once.
  constexpr int populate_write = 23;  // MADV_POPULATE_WRITE of Linux 5.14, whose name some headers lack
  advise(begin, first, populate_write);
  advise(last, end, populate_write);
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

  static void allocated(const Tensor& tensor, int64_t bytes) { prepare_pages(tensor.mutable_data(), bytes); }

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
