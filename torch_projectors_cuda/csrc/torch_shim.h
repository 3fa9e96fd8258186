// What is used of LibTorch's stable C interface (2.10 and later). Its functions are looked up in the torch that is in
// the process, so that this library is built without torch and loads where there is none, or an older one.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

namespace torch_projectors {

using StableValue = uint64_t;
using TensorHandle = struct AtenTensorOpaque*;
using LibraryHandle = struct TorchLibraryOpaque*;
using ListHandle = struct StableListOpaque*;
using BoxedKernel = void (*)(StableValue* stack, uint64_t inputs, uint64_t outputs);

// X(what it returns, its name, its arguments)
#define TORCH_PROJECTORS_SHIM(X)                                                                                     \
  X(int32_t, aoti_torch_library_init_impl, (const char*, const char*, const char*, uint32_t, LibraryHandle*))        \
  X(int32_t, aoti_torch_library_init_fragment, (const char*, const char*, uint32_t, LibraryHandle*))                 \
  X(int32_t, aoti_torch_library_def, (LibraryHandle, const char*))                                                   \
  X(int32_t, torch_library_impl, (LibraryHandle, const char*, BoxedKernel, uint64_t))                                \
  X(int32_t, aoti_torch_delete_tensor_object, (TensorHandle))                                                        \
  X(int32_t, aoti_torch_get_dtype, (TensorHandle, int32_t*))                                                         \
  X(int32_t, aoti_torch_get_device_type, (TensorHandle, int32_t*))                                                   \
  X(int32_t, aoti_torch_get_device_index, (TensorHandle, int32_t*))                                                  \
  X(int32_t, aoti_torch_get_dim, (TensorHandle, int64_t*))                                                           \
  X(int32_t, aoti_torch_get_sizes, (TensorHandle, int64_t**))                                                        \
  X(int32_t, aoti_torch_is_contiguous, (TensorHandle, bool*))                                                        \
  X(int32_t, torch_get_const_data_ptr, (TensorHandle, const void**))                                                 \
  X(int32_t, torch_get_mutable_data_ptr, (TensorHandle, void**))                                                     \
  X(int32_t, aoti_torch_empty_strided,                                                                               \
    (int64_t, const int64_t*, const int64_t*, int32_t, int32_t, int32_t, TensorHandle*))                             \
  X(int32_t, torch_list_size, (ListHandle, size_t*))                                                                 \
  X(int32_t, torch_list_get_item, (ListHandle, size_t, StableValue*))                                                \
  X(int32_t, torch_delete_list, (ListHandle))                                                                        \
  X(int32_t, aoti_torch_dtype_float32, ())                                                                           \
  X(int32_t, aoti_torch_dtype_float64, ())                                                                           \
  X(int32_t, aoti_torch_dtype_complex64, ())                                                                         \
  X(int32_t, aoti_torch_dtype_complex128, ())                                                                        \
  X(int32_t, aoti_torch_dtype_uint8, ())                                                                             \
  X(int32_t, aoti_torch_device_type_cpu, ())                                                                         \
  X(int32_t, aoti_torch_device_type_cuda, ())

// From 2.13; before, an optional is freed by `delete`.
#define TORCH_PROJECTORS_SHIM_OPTIONAL(X) X(int32_t, torch_delete_stable_ivalue, (StableValue*))

struct Shim {
#define X(result, name, arguments) result(*name) arguments = nullptr;
  TORCH_PROJECTORS_SHIM(X)
  TORCH_PROJECTORS_SHIM_OPTIONAL(X)
#undef X

  // The release whose behaviour is relied on, as the stable interface counts them.
  static constexpr uint64_t kRelease = (uint64_t(2) << 56) | (uint64_t(10) << 48);

  // Returns the name of what could not be found, or null.
  const char* find();
};

extern Shim shim;

}  // namespace torch_projectors
