#pragma once

#include "cpu/transpose.h"
#include "torch/stable.h"

namespace mim4d {

// A CPU volume (B, C, Z, Y, X) of float or double with its channels last: itself where it lies so, else a transposed
// copy (torch's own strided copy takes about eight times as long).
inline Tensor channels_last(const Tensor& volume) {
  if (is_channels_last(volume)) return volume;
  const Tensor from = torch::stable::contiguous(volume);
  const Tensor to = empty_channels_last(volume);
  const int64_t B = volume.size(0), C = volume.size(1), voxels = volume.size(2) * volume.size(3) * volume.size(4);
  dispatch_floating("channels_last", volume.scalar_type(), [&]<class T>() {
    Transpose<T> transpose;
    if constexpr (sizeof(T) == 4)
      transpose = MIM4D_PICK_ISA(transpose_float);
    else
      transpose = MIM4D_PICK_ISA(transpose_double);
    constexpr int64_t group = 256;  // voxels: long runs, whole cache lines
    torch::stable::parallel_for(0, B * ((voxels + group - 1) / group), 16, [&](int64_t begin, int64_t end) {
      const int64_t groups = (voxels + group - 1) / group;
      for (int64_t g = begin; g < end; ++g) {
        const int64_t item = g / groups, first = g % groups * group;
        transpose(data<T>(from) + item * C * voxels, mutable_data<T>(to) + item * C * voxels, voxels, C, first,
                  std::min(first + group, voxels));
      }
    });
  });
  return to;
}

}  // namespace mim4d
