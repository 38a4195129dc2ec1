#pragma once

#include "torch/stable.h"
#include "torch/transpose.h"

namespace mim4d {

// A copy of a CPU volume (B, C, Z, Y, X) of float or double with its channels last (torch's own strided copy takes
// about eight times as long). Slices of batch items, channels and z are read where they lie.
inline Tensor channels_last_copy(const Tensor& volume) {
  const int64_t B = volume.size(0), C = volume.size(1), Y = volume.size(3), X = volume.size(4);
  const int64_t voxels = volume.size(2) * Y * X;
  const auto lies = [&](int d, int64_t stride) { return volume.size(d) == 1 || volume.stride(d) == stride; };
  const Tensor from = lies(4, 1) && lies(3, X) && lies(2, Y * X) ? volume : torch::stable::contiguous(volume);
  const Tensor to = empty_channels_last(volume);
  dispatch_floating("channels_last", volume.scalar_type(), [&]<class T>() {
    transpose_items(data<T>(from), from.stride(0), from.stride(1), mutable_data<T>(to), B, voxels, C);
  });
  return to;
}

// The volume itself where it lies so.
inline Tensor channels_last(const Tensor& volume) {
  return is_channels_last(volume) ? volume : channels_last_copy(volume);
}

}  // namespace mim4d
