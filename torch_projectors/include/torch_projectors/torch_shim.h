// What is used of LibTorch's stable C interface (2.10 and later). Its functions are looked up in the torch that is in
// the process, so that this library is built without torch and loads where there is none, or an older one.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#else
#include <dlfcn.h>
#endif
#if defined(__APPLE__)
#include <mach-o/dyld.h>
#endif

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
  X(int32_t, torch_parallel_for, (int64_t, int64_t, int64_t, void (*)(int64_t, int64_t, void*), void*))              \
  X(int32_t, torch_get_num_threads, (uint32_t*))                                                                     \
  X(int32_t, aoti_torch_dtype_float32, ())                                                                           \
  X(int32_t, aoti_torch_dtype_float64, ())                                                                           \
  X(int32_t, aoti_torch_dtype_complex64, ())                                                                         \
  X(int32_t, aoti_torch_dtype_complex128, ())                                                                        \
  X(int32_t, aoti_torch_dtype_uint8, ())                                                                             \
  X(int32_t, aoti_torch_device_type_cpu, ())                                                                         \
  X(int32_t, aoti_torch_device_type_cuda, ())

// From 2.13; before, an optional is freed by `delete`.
#define TORCH_PROJECTORS_SHIM_OPTIONAL(X) X(int32_t, torch_delete_stable_ivalue, (StableValue*))

// Where symbols of torch are: its library, such as torch_cpu, if one of that name is loaded, also if for others alone.
inline void* torch_library(const std::string& name) {
#if defined(_WIN32)
  return reinterpret_cast<void*>(GetModuleHandleA((name + ".dll").c_str()));
#elif defined(__APPLE__)
  const std::string file = "/lib" + name + ".dylib";
  for (uint32_t i = 0; i < _dyld_image_count(); ++i) {
    const char* path = _dyld_get_image_name(i);
    const char* end = path == nullptr ? nullptr : std::strrchr(path, '/');
    if (end != nullptr && file == end) return dlopen(path, RTLD_LAZY | RTLD_NOLOAD);
  }
  return nullptr;
#else
  return dlopen(("lib" + name + ".so").c_str(), RTLD_LAZY | RTLD_NOLOAD);
#endif
}

// Or else anywhere.
inline void* symbol(void* library, const char* name) {
#if defined(_WIN32)
  const HMODULE module = library == nullptr ? GetModuleHandleW(nullptr) : static_cast<HMODULE>(library);
  return reinterpret_cast<void*>(GetProcAddress(module, name));
#else
  return dlsym(library == nullptr ? RTLD_DEFAULT : library, name);
#endif
}

struct Shim {
#define X(result, name, arguments) result(*name) arguments = nullptr;
  TORCH_PROJECTORS_SHIM(X)
  TORCH_PROJECTORS_SHIM_OPTIONAL(X)
#undef X

  // The release whose behaviour is relied on, as the stable interface counts them.
  static constexpr uint64_t kRelease = (uint64_t(2) << 56) | (uint64_t(10) << 48);

  // Returns the name of what could not be found, or null.
  const char* find() {
    void* library = torch_library("torch_cpu");
#define X(result, name, arguments) \
  if ((name = reinterpret_cast<result(*) arguments>(symbol(library, #name))) == nullptr) return #name;
    TORCH_PROJECTORS_SHIM(X)
#undef X
#define X(result, name, arguments) name = reinterpret_cast<result(*) arguments>(symbol(library, #name));
    TORCH_PROJECTORS_SHIM_OPTIONAL(X)
#undef X
    return nullptr;
  }
};

}  // namespace torch_projectors
