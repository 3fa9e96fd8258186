// Checks of arguments, and what becomes of exceptions.
#pragma once

#include <cstdint>
#include <limits>

namespace torch_projectors {

// Arithmetic on numbers >= 0 that stays at the most there is.
constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
inline int64_t times(int64_t a, int64_t b) { return b != 0 && a > kMost / b ? kMost : a * b; }
inline int64_t plus(int64_t a, int64_t b) { return a > kMost - b ? kMost : a + b; }

struct Refused {};

// Says what is wrong with an argument, by a format of printf, and throws Refused.
#if defined(__GNUC__)
[[noreturn]] void refuse(const char* format, ...) __attribute__((format(printf, 1, 2)));
#else
[[noreturn]] void refuse(const char* format, ...);
#endif

// Of the exception that is being handled: its code, and its message for the thread.
int32_t failure();

void begin_call();

template <class F>
int32_t guarded(const F& f) {
  begin_call();
  try {
    f();
    return 0;
  } catch (...) {
    return failure();
  }
}

}  // namespace torch_projectors
