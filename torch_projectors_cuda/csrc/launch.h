// What kernels need of a device, and the same on the host, where their tests run: blocks one after another, and threads
// of a block in turn.
//
// A kernel is a value with an operator()(block, shared). Its threads meet between calls of block.each, and what one of
// them keeps from call to call is PerThread.
#pragma once

#include <cstdint>

#include "torch_projectors/grid.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define TORCH_PROJECTORS_DEVICE __device__ __forceinline__
#define TORCH_PROJECTORS_UNROLL _Pragma("unroll")
// Of `taps` columns in a space of V dimensions: 64 taps at once would hold registers that other warps need.
#define TORCH_PROJECTORS_UNROLL_COLUMNS _Pragma("unroll (taps == 4 && V == 3 ? 1 : taps)")
#elif defined(TORCH_PROJECTORS_HOST)
#include <bitset>
#include <cmath>
#include <cstring>
#define TORCH_PROJECTORS_DEVICE inline
#define TORCH_PROJECTORS_UNROLL
#define TORCH_PROJECTORS_UNROLL_COLUMNS
#else
#error "expected nvcc, or TORCH_PROJECTORS_HOST"
#endif

namespace torch_projectors {

constexpr int kThreads = 256, kWarp = 32;

// As many as a grid may have.
constexpr int64_t kMostBlocks = (int64_t(1) << 31) - 1;

// An error of the runtime.
struct DeviceError {
  int code;
};

// Numbers side by side in memory are read and written at once.
template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T re, im;
};

// A sum and that of its weights.
struct alignas(4 * sizeof(float)) Quad {
  float re, im, weight, none;
};

#if defined(__CUDACC__)

using Stream = cudaStream_t;

template <class T>
struct PerThread {
  T value;
  __device__ T& operator[](int) { return value; }
};

struct Block {
  __device__ int64_t index() const { return blockIdx.x; }
  __device__ int64_t count() const { return gridDim.x; }

  template <class Body>
  TORCH_PROJECTORS_DEVICE void each(const Body& body) const {
    body(int(threadIdx.x));
  }

  // Between what threads write to shared memory and what others read of it.
  TORCH_PROJECTORS_DEVICE void meet() const { __syncthreads(); }

  // A bit for every thread of each warp that says yes, in shared memory.
  TORCH_PROJECTORS_DEVICE void vote(const PerThread<bool>& yes, uint32_t (&of_warp)[kThreads / kWarp]) const {
    const uint32_t votes = __ballot_sync(~0u, yes.value);
    if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = votes;
  }

  // Adds to each thread's numbers those of the thread `lanes` further in its warp; the last threads' are of no use.
  template <class T, int n>
  TORCH_PROJECTORS_DEVICE void add_from(PerThread<T[n]>& numbers, int lanes) const {
    TORCH_PROJECTORS_UNROLL
    for (int i = 0; i < n; ++i) numbers.value[i] += __shfl_down_sync(~0u, numbers.value[i], lanes);
  }
};

TORCH_PROJECTORS_DEVICE void add(float* at, float x) { atomicAdd(at, x); }

TORCH_PROJECTORS_DEVICE void add(double* at, double x) { atomicAdd(at, x); }

template <class T>
TORCH_PROJECTORS_DEVICE void add(Pair<T>* at, Pair<T> x) {
#if __CUDA_ARCH__ >= 900
  if constexpr (sizeof(T) == 4) {
    atomicAdd(reinterpret_cast<float2*>(at), make_float2(x.re, x.im));
    return;
  }
#endif
  atomicAdd(&at->re, x.re);
  atomicAdd(&at->im, x.im);
}

TORCH_PROJECTORS_DEVICE void add(Quad* at, Quad x) {
#if __CUDA_ARCH__ >= 900 && CUDART_VERSION >= 12010
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(__cvta_generic_to_global(at)), "f"(x.re), "f"(x.im), "f"(x.weight), "f"(x.none)
               : "memory");
#else
  atomicAdd(&at->re, x.re);
  atomicAdd(&at->im, x.im);
  atomicAdd(&at->weight, x.weight);
#endif
}

// Of memory that nobody writes to meanwhile.
TORCH_PROJECTORS_DEVICE float read(const float* at) { return __ldg(at); }
TORCH_PROJECTORS_DEVICE double read(const double* at) { return __ldg(at); }
TORCH_PROJECTORS_DEVICE Pair<float> read(const Pair<float>* at) {
  const float2 x = __ldg(reinterpret_cast<const float2*>(at));
  return {x.x, x.y};
}
TORCH_PROJECTORS_DEVICE Pair<double> read(const Pair<double>* at) {
  const double2 x = __ldg(reinterpret_cast<const double2*>(at));
  return {x.x, x.y};
}

TORCH_PROJECTORS_DEVICE int bits(uint32_t x) { return __popc(x); }

// exp(2 pi i turns)
TORCH_PROJECTORS_DEVICE Pair<float> turned(float turns) {
  Pair<float> x;
  sincospif(2 * turns, &x.im, &x.re);
  return x;
}
TORCH_PROJECTORS_DEVICE Pair<double> turned(double turns) {
  Pair<double> x;
  sincospi(2 * turns, &x.im, &x.re);
  return x;
}

template <class Kernel>
__global__ void __launch_bounds__(kThreads) run(const Kernel kernel) {
  __shared__ typename Kernel::Shared shared;
  kernel(Block{}, shared);
}

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw DeviceError{int(error)};
}

// At most so many blocks; kernels find their way with fewer.
template <class Kernel>
void launch(const Kernel& kernel, int64_t blocks, Stream stream) {
  if (blocks == 0) return;
  run<<<unsigned(blocks < kMostBlocks ? blocks : kMostBlocks), kThreads, 0, stream>>>(kernel);
  check(cudaGetLastError());
}

inline void clear(void* data, int64_t bytes, Stream stream) {
  if (bytes > 0) check(cudaMemsetAsync(data, 0, size_t(bytes), stream));
}

// Makes a device the current one of the thread, for a while.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    int count = 0;
    check(cudaGetDeviceCount(&count));
    check(device < 0 || device >= count ? cudaErrorInvalidDevice : cudaGetDevice(&before_));
    if (device == before_) return;
    check(cudaSetDevice(device));
    switched_ = true;
  }
  OnDevice(const OnDevice&) = delete;
  ~OnDevice() {
    if (switched_) (void)cudaSetDevice(before_);
  }

 private:
  int before_ = -1;
  bool switched_ = false;
};

// Asked of the device, to know whether it can run what this library was built for.
struct Empty {
  struct Shared {};
  TORCH_PROJECTORS_DEVICE void operator()(const Block&, Shared&) const {}
};

inline void check_architecture() {
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, run<Empty>));
}

#else

using Stream = void*;

// Whether blocks and threads run last first: what depends on their order is told from what does not.
inline bool& backwards() {
  static bool last_first = false;
  return last_first;
}

template <class T>
struct PerThread {
  T values[kThreads];
  T& operator[](int thread) { return values[thread]; }
};

struct Block {
  int64_t number, total;

  int64_t index() const { return number; }
  int64_t count() const { return total; }

  template <class Body>
  void each(const Body& body) const {
    for (int i = 0; i < kThreads; ++i) body(backwards() ? kThreads - 1 - i : i);
  }

  void meet() const {}

  void vote(PerThread<bool>& yes, uint32_t (&of_warp)[kThreads / kWarp]) const {
    for (int thread = 0; thread < kThreads; ++thread) {
      uint32_t& votes = of_warp[thread / kWarp];
      votes = (thread % kWarp == 0 ? 0 : votes) | uint32_t(yes[thread]) << thread % kWarp;
    }
  }

  template <class T, int n>
  void add_from(PerThread<T[n]>& numbers, int lanes) const {
    for (int thread = 0; thread < kThreads; ++thread)
      if (thread % kWarp + lanes < kWarp)
        for (int i = 0; i < n; ++i) numbers[thread][i] += numbers[thread + lanes][i];
  }
};

template <class T>
void add(T* at, T x) {
  *at += x;
}

template <class T>
void add(Pair<T>* at, Pair<T> x) {
  at->re += x.re;
  at->im += x.im;
}

inline void add(Quad* at, Quad x) {
  at->re += x.re;
  at->im += x.im;
  at->weight += x.weight;
}

template <class T>
T read(const T* at) {
  return *at;
}

inline int bits(uint32_t x) { return int(std::bitset<32>(x).count()); }

template <class T>
Pair<T> turned(T turns) {
  const double angle = 2 * 3.14159265358979323846 * (double(turns) - std::nearbyint(double(turns)));
  return {T(std::cos(angle)), T(std::sin(angle))};
}

template <class Kernel>
void launch(const Kernel& kernel, int64_t blocks, Stream) {
  // Few, so that kernels find their way with fewer.
  const int64_t total = blocks < 7 ? blocks : 7;
  for (int64_t i = 0; i < total; ++i) {
    typename Kernel::Shared shared;
    kernel(Block{backwards() ? total - 1 - i : i, total}, shared);
  }
}

inline void clear(void* data, int64_t bytes, Stream) { std::memset(data, 0, size_t(bytes)); }

struct OnDevice {
  explicit OnDevice(int) {}
};

inline void check_architecture() {}

#endif

}  // namespace torch_projectors
