#pragma once
// Images and volumes as rows of channels, on any device, by torch's own copies.

#include <vector>

#include "torch/stable.h"

namespace mim4d {

// Features (B, N, C, H, W) as (B * N, C, H, W) that lies [B, N, H, W, C]: themselves or a copy.
inline Tensor pixel_rows(const Tensor& features) {
  const int64_t images = features.size(0) * features.size(1);
  const Tensor flat = torch::stable::reshape(features, {images, features.size(2), features.size(3), features.size(4)});
  return torch::stable::contiguous(flat, MemoryFormat::ChannelsLast);
}

// Uninitialised memory for the same.
inline Tensor empty_pixel_rows(const Tensor& features, ScalarType dtype) {
  const std::vector<int64_t> shape = {features.size(0) * features.size(1), features.size(2), features.size(3),
                                      features.size(4)};
  return torch::stable::empty(shape, dtype, std::nullopt, features.device(), std::nullopt, MemoryFormat::ChannelsLast);
}

// Back to a contiguous (B, N, C, H, W).
inline Tensor from_pixel_rows(const Tensor& rows, const Tensor& features) {
  return torch::stable::view(torch::stable::contiguous(rows), features.sizes());
}

// A volume (B, C, Z, Y, X) that lies channels last: itself or a copy.
inline Tensor volume_rows(const Tensor& volume) {
  return is_channels_last(volume) ? volume : torch::stable::contiguous(volume, MemoryFormat::ChannelsLast3d);
}

}  // namespace mim4d
