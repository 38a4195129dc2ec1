#pragma once
// The ops that other CUDA ops read a volume by, where they do not do so themselves.

#include <optional>
#include <tuple>
#include <vector>

#include "torch/stable.h"

namespace mim4d {

using OptionalTensor = std::optional<Tensor>;

std::tuple<Tensor, Tensor> voxel_sample_with_grad_cuda(const Tensor& volume, const Tensor& points, int64_t mode,
                                                       int64_t padding, bool align);
std::tuple<Tensor, Tensor> voxel_sample_with_grad_backward_cuda(OptionalTensor grad_features,
                                                                OptionalTensor grad_jacobian, const Tensor& volume,
                                                                const Tensor& points, int64_t mode, int64_t padding,
                                                                bool align, std::vector<bool> mask);

}  // namespace mim4d
