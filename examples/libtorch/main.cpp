// Projects a volume, reconstructs it from images with weights, and takes gradients, in C++ and without Python. What
// comes out is compared with what Python computes: write_expected.py writes both inputs and results.
#include <complex>
#include <cstdio>
#include <exception>
#include <fstream>
#include <map>
#include <sstream>
#include <string>

#include <torch/csrc/autograd/autograd.h>

#include "torch_projectors.h"

namespace tp = torch_projectors;

using Arrays = std::map<std::string, at::Tensor>;

// Arrays one after the other: a line with name, type ("real" or "complex") and sizes, then float64 numbers.
Arrays read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  TORCH_CHECK(file.is_open(), path, ": cannot be opened");
  Arrays arrays;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name, type;
    words >> name >> type;
    std::vector<int64_t> sizes;
    for (int64_t n; words >> n;) sizes.push_back(n);
    const at::Tensor array = at::empty(sizes, type == "complex" ? at::kComplexDouble : at::kDouble);
    file.read(static_cast<char*>(array.mutable_data_ptr()), std::streamsize(array.nbytes()));
    TORCH_CHECK(file.good(), path, ": ends within ", name);
    arrays[name] = array;
  }
  return arrays;
}

at::Tensor squares(const at::Tensor& x) { return at::real(x * x.conj()).sum(); }

Arrays compute(const Arrays& inputs, at::ScalarType real, at::Device device) {
  const auto input = [&](const char* name) {
    const at::Tensor x = inputs.at(name);
    return x.to(device, x.is_complex() ? at::toComplexType(real) : real);
  };
  const at::Tensor volume = input("volume").requires_grad_(), rotations = input("rotations").requires_grad_(),
                   shifts = input("shifts").requires_grad_();
  const at::Tensor targets = input("targets"), weights = input("weights");

  tp::Options options;
  options.interpolation = tp::Interpolation::cubic;
  Arrays results;

  const at::Tensor images = tp::forward_project(volume, rotations, shifts, options);
  results["images"] = images;

  // Gradients of a loss for all that was projected.
  const auto gradients =
      torch::autograd::grad({squares(images - targets)}, {volume, rotations, shifts}, {}, /*retain_graph=*/true);
  results["volume_gradient"] = gradients[0];
  results["rotation_gradient"] = gradients[1];
  results["shift_gradient"] = gradients[2];

  // A gradient may be part of a loss.
  const auto slope =
      torch::autograd::grad({squares(images - targets)}, {volume}, {}, std::nullopt, /*create_graph=*/true);
  results["steepness_gradient"] = torch::autograd::grad({squares(slope[0])}, {volume})[0];

  // The sum of weighted images, and of weights: their quotient is a reconstruction.
  const auto [sum, weight_sum] = tp::backward_project(targets * weights, rotations, shifts, weights, options);
  results["sum"] = sum;
  results["weight_sum"] = weight_sum;
  return results;
}

int main(int argc, char** argv) {
  if (argc != 3 && argc != 4) {
    std::fprintf(stderr,
                 "usage: %s LIBRARY FILE [DEVICE]\nLIBRARY: that of torch-projectors-cpu, or of torch-projectors-cuda; "
                 "FILE: from write_expected.py; DEVICE: cpu (default), cuda, cuda:1\n",
                 argv[0]);
    return 2;
  }
  try {
    const at::Device device(argc == 4 ? argv[3] : "cpu");
    tp::load(argv[1], device.type());
    const Arrays arrays = read(argv[2]);
    const Arrays doubles = compute(arrays, at::kDouble, device), floats = compute(arrays, at::kFloat, device);
    bool good = true;
    std::printf("relative differences from Python  float64  float32\n");
    for (const auto& [name, computed] : doubles) {
      const at::Tensor expected = arrays.at("expected_" + name);
      const auto difference = [&, name = name](const Arrays& results) {
        return ((results.at(name).cpu() - expected).norm() / expected.norm()).item().toComplexDouble().real();
      };
      const double in_double = difference(doubles), in_float = difference(floats);
      std::printf("%-32s  %.1e  %.1e\n", name.c_str(), in_double, in_float);
      // Some hundred roundings each, of 1e-16 and 6e-8.
      good = good && in_double < 1e-13 && in_float < 1e-4;
    }
    std::printf("%s\n", good ? "agreed" : "DIFFERENT");
    return good ? 0 : 1;
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "%s\n", error.what_without_backtrace());
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
