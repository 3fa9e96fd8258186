// What an operation is, beside its arrays.
#pragma once

#include <cstdint>

namespace torch_projectors {

enum class Scalar { float32, float64 };

// Shapes are real-space shapes, x first. Strides count entries: from volume to volume, and from pose to pose.
struct Operation {
  int volume_dims, image_dims, interpolation;
  int64_t volume_shape[3], image_shape[3];
  double oversampling, cutoff;
  bool pairs_once;  // images count each Friedel pair once: entries of columns that hold both of its members count half
  bool add;         // the transpose is added to what volumes hold, which otherwise are overwritten
  bool mates;       // and what volumes hold then is completed by mates
  int64_t batch, poses;
  const void* rotations;
  const void* shifts;  // or null
  int64_t rotation_strides[2], shift_strides[2], image_strides[2];  // the first is 0 where a batch shares them
  int64_t volume_stride;
};

}  // namespace torch_projectors
