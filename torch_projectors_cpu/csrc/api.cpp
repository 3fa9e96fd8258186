// The C API: arguments are checked, every one, before any work, and handed to the best kernels for the processor.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <vector>

#include "problem.h"
#include "torch_projectors/call.h"
#include "torch_projectors_cpu.h"

#if defined(_MSC_VER) && defined(_M_X64)
#include <intrin.h>
#endif

namespace torch_projectors {

namespace baseline {
Kernels kernels();
}
#if defined(TORCH_PROJECTORS_AVX2)
namespace avx2 {
Kernels kernels();
}
#endif
#if defined(TORCH_PROJECTORS_AVX512)
namespace avx512 {
Kernels kernels();
}
#endif

int32_t failure() {
  return failure_beside([]() -> int32_t { throw; });
}

namespace {

// Levels of vector instructions, the best last.

#if defined(TORCH_PROJECTORS_AVX2) && defined(_MSC_VER)
bool has(int leaf_register, int bit) {
  int registers[4];
  __cpuidex(registers, 7, 0);
  return registers[leaf_register] >> bit & 1;
}

bool saves(unsigned long long state) {
  int registers[4];
  __cpuid(registers, 1);
  return (registers[2] >> 27 & 1) && (_xgetbv(0) & state) == state;
}

bool has_avx2() {
  int registers[4];
  __cpuid(registers, 1);
  const bool fma = registers[2] >> 12 & 1;
  return saves(0x6) && fma && has(1, 5) && has(1, 8);
}

bool has_avx512() { return saves(0xe6) && has_avx2() && has(1, 16) && has(1, 17) && has(1, 30) && has(1, 31); }
#elif defined(TORCH_PROJECTORS_AVX2)
bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
#endif

struct Level {
  const char* name;
  bool (*supported)();
  Kernels (*kernels)();
};

const Level kLevels[] = {
    {"baseline", [] { return true; }, baseline::kernels},
#if defined(TORCH_PROJECTORS_AVX2)
    {"avx2", has_avx2, avx2::kernels},
#endif
#if defined(TORCH_PROJECTORS_AVX512)
    {"avx512", has_avx512, avx512::kernels},
#endif
};

Kernels choose() {
  const char* asked = std::getenv("TORCH_PROJECTORS_CPU_LEVEL");
  if (asked != nullptr && *asked == 0) asked = nullptr;
  bool known = asked == nullptr;
  for (const char* name : {"baseline", "avx2", "avx512"}) known = known || std::strcmp(asked, name) == 0;
  if (!known)
    refuse("TORCH_PROJECTORS_CPU_LEVEL: expected baseline, avx2 or avx512, got '%.100s'", asked);
  Kernels best = kLevels[0].kernels();
  for (const Level& level : kLevels) {
    if (!level.supported()) break;
    best = level.kernels();
    if (asked != nullptr && std::strcmp(asked, level.name) == 0) break;
  }
  return best;
}

const Kernels& kernels() {
  static const Kernels chosen = choose();
  return chosen;
}

// Threads.

constexpr int64_t kMostThreads = 1024;
// Work, in nanoseconds or so, that pays for a thread that waits for it, and for one that must be started.
constexpr double kPaysForPool = 40000, kPaysForThread = 100000;

// The body of a parallel loop, from which no exception escapes into a thread, and of which no part may be left out.
struct Body {
  torch_projectors_body body;
  void* context;
  std::atomic<int64_t> covered{0};
  std::mutex mutex;
  std::exception_ptr error;

  static void run(void* self, int64_t begin, int64_t end) noexcept {
    Body& b = *static_cast<Body*>(self);
    try {
      b.body(b.context, begin, end);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(b.mutex);
      if (!b.error) b.error = std::current_exception();
    }
    b.covered += end - begin;
  }
};

struct Team {
  torch_projectors_runner runner;
  void* pool;
  int64_t threads;  // 0: as many as there are cores
  double work;
};

// Threads that live no longer than the call: nothing that a fork would lose.
void run_on_threads(const Team& team, int64_t n, Body& body) {
  int64_t threads = team.threads;
  if (threads == 0) threads = int64_t(std::thread::hardware_concurrency());
  const double paid = 1 + team.work / kPaysForThread;
  const int64_t most = paid < double(kMostThreads) ? int64_t(paid) : kMostThreads;
  threads = threads < 1 ? 1 : threads < most ? threads : most;
  const int64_t count = threads < n ? threads : n;
  const auto limit = [&](int64_t i) { return n / count * i + (i < n % count ? i : n % count); };
  std::vector<std::thread> started;
  started.reserve(size_t(count - 1));
  int64_t i = 1;
  for (; i < count; ++i) {
    try {
      started.emplace_back(Body::run, &body, limit(i), limit(i + 1));
    } catch (...) {  // no more to be had: the rest is done here
      break;
    }
  }
  Body::run(&body, 0, limit(1));
  if (i < count) Body::run(&body, limit(i), n);
  for (std::thread& thread : started) thread.join();
}

void run_on_team(void* pool, int64_t n, torch_projectors_body work, void* context) {
  const Team& team = *static_cast<const Team*>(pool);
  if (n <= 0) return;
  Body body{work, context, {}, {}, {}};
  if (n == 1 || team.work < kPaysForPool)
    Body::run(&body, 0, n);
  else if (team.runner != nullptr)
    team.runner(team.pool, n, Body::run, &body);
  else
    run_on_threads(team, n, body);
  if (body.error) std::rethrow_exception(body.error);
  if (body.covered != n) throw std::runtime_error("the runner did not cover the whole range once");
}

// Arguments, and who works on them.

static_assert(kInvalid == TORCH_PROJECTORS_INVALID && kOutOfMemory == TORCH_PROJECTORS_MEMORY &&
                  kFailed == TORCH_PROJECTORS_FAILED && kFloat32 == TORCH_PROJECTORS_FLOAT32 &&
                  kFloat64 == TORCH_PROJECTORS_FLOAT64 && Nearest::code == TORCH_PROJECTORS_NEAREST &&
                  Linear::code == TORCH_PROJECTORS_LINEAR && Cubic::code == TORCH_PROJECTORS_CUBIC,
              "what all backends share");

struct CpuCall : Call<torch_projectors_problem, Problem, false> {
  Team team;
  Parallel parallel;

  explicit CpuCall(const torch_projectors_problem* q) : Call(q) {
    if (q->threads < 0) refuse("threads: expected a number >= 0, got %d", int(q->threads));
    // Kernels place entries within a plane by 32-bit numbers.
    if (times(problem.volume_shape[0] / 2 + 1, problem.volume_shape[1]) > std::numeric_limits<int32_t>::max())
      refuse("volume_shape: expected planes of less than 2^31 entries, got %lld x %lld points",
             static_cast<long long>(problem.volume_shape[1]), static_cast<long long>(problem.volume_shape[0]));

    const int v = q->volume_dims, taps[] = {1, v == 3 ? 8 : 4, 0, v == 3 ? 64 : 16};
    team.runner = q->runner;
    team.pool = q->pool;
    team.threads = q->threads;
    team.work = double(q->batch) * double(q->poses) * double(images.entries) * (5 + taps[q->interpolation] / 2.0);
    parallel = {run_on_team, &team};
  }

  void zero(void* data, const Layout& layout, bool of_reals) const {
    Call::zero(data, layout, of_reals, [](void* from, int64_t bytes) { std::memset(from, 0, size_t(bytes)); });
  }

  void complete(void* volume, void* weight_volume) {
    if (volumes.empty()) return;
    // Cache misses.
    team.work = double(problem.batch) * double(problem.volume_shape[1]) * double(problem.volume_shape[2]) * 10;
    kernels().add_mates(problem, scalar, real, volume, weight_volume, parallel);
  }
};

}  // namespace
}  // namespace torch_projectors

using namespace torch_projectors;

int32_t torch_projectors_cpu_forward_project(const torch_projectors_problem* problem, const void* volume,
                                             void* images) {
  return guarded([&] {
    CpuCall call(problem);
    call.forward_project(volume, images);
    if (call.any) kernels().project(call.problem, call.scalar, call.real, volume, images, call.parallel);
  });
}

int32_t torch_projectors_cpu_backward_project(const torch_projectors_problem* problem, const void* images,
                                              const void* weights, void* volume, void* weight_volume) {
  return guarded([&] {
    CpuCall call(problem);
    call.backward_project(images, weights, volume, weight_volume);
    if (call.any) {
      kernels().backproject(call.problem, call.scalar, call.real, images, weights, volume, weight_volume,
                            call.parallel);
      return;
    }
    if (!call.problem.add) {
      call.zero(volume, call.volumes, false);
      call.zero(weight_volume, call.volumes, true);
    }
    if (call.problem.mates) call.complete(volume, weight_volume);
  });
}

int32_t torch_projectors_cpu_project_gradients(const torch_projectors_problem* problem, const void* volume,
                                               const void* images, void* grad_volume, void* grad_images,
                                               void* grad_rotations, void* grad_shifts) {
  return guarded([&] {
    CpuCall call(problem);
    call.project_gradients(volume, images, grad_volume, grad_images, grad_rotations, grad_shifts);
    if (call.any) {
      const Kernels& k = kernels();
      if (grad_images != nullptr || grad_rotations != nullptr || grad_shifts != nullptr)
        k.gradients(call.problem, call.scalar, call.real, volume, images, grad_images, grad_rotations, grad_shifts,
                    call.parallel);
      if (grad_volume != nullptr)
        k.backproject(call.problem, call.scalar, call.real, images, nullptr, grad_volume, nullptr, call.parallel);
    } else {
      call.zero(grad_volume, call.volumes, false);
      call.zero(grad_rotations, call.grad_rotations, true);
      call.zero(grad_shifts, call.grad_shifts, true);
    }
  });
}

int32_t torch_projectors_cpu_add_mates(const torch_projectors_problem* problem, void* volume, void* weight_volume) {
  return guarded([&] {
    CpuCall call(problem);
    call.add_mates(volume, weight_volume);
    call.complete(volume, weight_volume);
  });
}

int32_t torch_projectors_cpu_gather_roof(const torch_projectors_problem* problem, const void* volume, void* images) {
  return guarded([&] {
    CpuCall call(problem);
    if (call.problem.volume_dims != 3 || call.problem.image_dims != 2 || call.real)
      refuse("volume_dims, image_dims, real: expected 3, 2 and 0, got %d, %d and %d", call.problem.volume_dims,
             call.problem.image_dims, int(call.real));
    for (const int64_t n : call.problem.volume_shape)
      if (n < 2) refuse("volume_shape: expected axes of at least 2 points, got one of %lld", static_cast<long long>(n));
    call.forward_project(volume, images);
    if (call.any) kernels().roof(call.problem, call.scalar, volume, images, call.parallel);
  });
}

const char* torch_projectors_cpu_message(void) { return message; }

const char* torch_projectors_cpu_level(void) {
  const char* level = "";
  guarded([&] { level = kernels().level; });
  return level;
}

const char* torch_projectors_cpu_version(void) { return TEXT(TORCH_PROJECTORS_VERSION); }
