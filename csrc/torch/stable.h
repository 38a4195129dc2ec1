#pragma once
// The only door to torch: LibTorch's stable ABI, restricted to what torch 2.11 has.

#include <optional>
#include <vector>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

namespace mim4d {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <class T>
T* mutable_data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

inline bool is_half(ScalarType dtype) { return dtype == ScalarType::Half || dtype == ScalarType::BFloat16; }

// f.operator()<T>() for float or double. A template lambda instead of a macro: commas and breakpoints work inside.
template <class F>
decltype(auto) dispatch_floating(const char* op, ScalarType dtype, F&& f) {
  if (dtype == ScalarType::Float) return f.template operator()<float>();
  STD_TORCH_CHECK(dtype == ScalarType::Double, "mim4d::", op, ": dtype ", torch::headeronly::toString(dtype),
                  ", wanted float32 or float64");
  return f.template operator()<double>();
}

// What a backward op returns for an input whose gradient is not wanted.
inline Tensor not_wanted(const Tensor& like) { return torch::stable::new_empty(like, {0}); }

// An uninitialised (B, C, Z, Y, X) tensor that lies channels last.
inline Tensor empty_channels_last(const Tensor& like, std::optional<ScalarType> dtype = {}) {
  return torch::stable::empty(like.sizes(), dtype ? dtype : like.scalar_type(), std::nullopt, like.device(),
                              std::nullopt, MemoryFormat::ChannelsLast3d);
}

// Does (B, C, Z, Y, X) lie as [B, Z, Y, X, C] without gaps? The stride of a dimension of size 1 says nothing.
inline bool is_channels_last(const Tensor& t) {
  int64_t expected = 1;
  for (int d : {1, 4, 3, 2, 0}) {
    if (t.size(d) != 1 && t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

}  // namespace mim4d
