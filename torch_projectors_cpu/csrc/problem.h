// An operation, the threads that it has, and the kernels.
#pragma once

#include "torch_projectors/operation.h"

namespace torch_projectors {

using Problem = Operation;

// Calls body(begin, end) on ranges that cover 0..n, at once on several threads.
struct Parallel {
  void (*run)(void* pool, int64_t n, void (*body)(void* context, int64_t begin, int64_t end), void* context);
  void* pool;

  template <class Body>
  void operator()(int64_t n, const Body& body) const {
    run(
        pool, n,
        [](void* context, int64_t begin, int64_t end) { (*static_cast<const Body*>(context))(begin, end); },
        const_cast<Body*>(&body));
  }
};

// The kernels, compiled once for every level of vector instructions. `real` data are weights in place of complex
// numbers. All of every output is written; nothing in it is read before.
struct Kernels {
  const char* level;
  void (*project)(const Problem&, Scalar, bool real, const void* volume, void* images, const Parallel&);
  // weights and weight_volume may both be null.
  void (*backproject)(const Problem&, Scalar, bool real, const void* images, const void* weights, void* volume,
                      void* weight_volume, const Parallel&);
  // Each of the gradients may be null.
  void (*gradients)(const Problem&, Scalar, bool real, const void* volume, const void* images, void* grad_images,
                    void* grad_rotations, void* grad_shifts, const Parallel&);
  // In place. weight_volume may be null.
  void (*add_mates)(const Problem&, Scalar, bool real, void* volume, void* weight_volume, const Parallel&);
  // The loads of a linear gather and nothing else: what memory allows.
  void (*roof)(const Problem&, Scalar, const void* volume, void* images, const Parallel&);
};

// One function a level: baseline::kernels(), avx2::kernels(), avx512::kernels(), each in kernels.cpp compiled with LEVEL.

}  // namespace torch_projectors
