#pragma once
// The only door to torch: LibTorch's stable ABI, restricted to what torch 2.11 has.

#include <array>
#include <optional>
#include <utility>
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

// Of a tensor that may be missing.
template <class T>
const T* data_or_null(const std::optional<Tensor>& t) {
  return t ? data<T>(*t) : nullptr;
}
inline std::optional<Tensor> contiguous(const std::optional<Tensor>& t) {
  return t ? std::optional<Tensor>(torch::stable::contiguous(*t)) : std::nullopt;
}

inline Tensor cast(const Tensor& t, ScalarType dtype) {
  return t.scalar_type() == dtype ? t : torch::stable::to(t, dtype);
}
inline std::optional<Tensor> cast(const std::optional<Tensor>& t, ScalarType dtype) {
  return t ? std::optional<Tensor>(cast(*t, dtype)) : std::nullopt;
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

// torch.sort(keys, stable=True) of a vector: values and indices.
inline std::pair<Tensor, Tensor> stable_sort(const Tensor& keys) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 4> stack = {from(keys), from(std::optional<bool>(true)), from(int64_t{0}), from(false)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

// torch.are_deterministic_algorithms_enabled(), which the stable ABI cannot tell: mim4d/_library.py defines an op for
// it.
inline bool deterministic() {
  std::array<StableIValue, 1> stack = {};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("mim4d::deterministic", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<bool>(stack[0]);
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
