#pragma once
// What op_cpu.cpp and op_cuda.cpp share: the checks behind those of the Python wrapper, and the sizes of the kernels'
// params.

#include <algorithm>
#include <vector>

#include "ms_deform_attn/params.h"
#include "torch/stable.h"

namespace mim4d {

struct MsDeformAttnInputs {
  const Tensor& value;
  const Tensor& shapes;
  const Tensor& starts;
  const Tensor& locations;
  const Tensor& weights;

  // of locations and of all arithmetic
  ScalarType wide() const { return is_half(value.scalar_type()) ? ScalarType::Float : value.scalar_type(); }
};

inline void check_ms_deform_attn(const MsDeformAttnInputs& in) {
  constexpr const char* op = "mim4d::ms_deform_attn";
  using torch::headeronly::toString;
  STD_TORCH_CHECK(in.value.dim() == 4, op, ": value has ", in.value.dim(), " dimensions, wanted (B, S, M, D)");
  STD_TORCH_CHECK(in.value.size(1) < (int64_t{1} << 31), op, ": value has S = ", in.value.size(1),
                  ", wanted less than 2^31");
  const int64_t B = in.value.size(0), M = in.value.size(2), L = in.shapes.dim() == 2 ? in.shapes.size(0) : 0;
  STD_TORCH_CHECK(in.shapes.dim() == 2 && in.shapes.size(1) == 2, op, ": spatial_shapes has the wrong shape, ",
                  "wanted (L, 2)");
  STD_TORCH_CHECK(in.starts.dim() == 1 && in.starts.size(0) == L, op, ": level_start_index has the wrong shape, ",
                  "wanted (", L, ",)");
  const Tensor& x = in.locations;
  STD_TORCH_CHECK(x.dim() == 6 && x.size(0) == B && x.size(2) == M && x.size(3) == L && x.size(5) == 2, op,
                  ": sampling_locations has the wrong shape, wanted (", B, ", Q, ", M, ", ", L, ", P, 2)");
  const auto wanted = x.sizes().slice(0, 5);
  STD_TORCH_CHECK(std::equal(wanted.begin(), wanted.end(), in.weights.sizes().begin(), in.weights.sizes().end()), op,
                  ": attention_weights has not the shape of sampling_locations less its last dimension");
  STD_TORCH_CHECK(x.scalar_type() == in.wide(), op, ": sampling_locations is ", toString(x.scalar_type()), ", wanted ",
                  toString(in.wide()));
  const ScalarType share = in.weights.scalar_type();
  STD_TORCH_CHECK(is_half(share) || share == ScalarType::Float || share == in.wide(), op, ": attention_weights is ",
                  toString(share), ", wanted a half, float32 or ", toString(in.wide()));
  for (const Tensor* t : {&in.shapes, &in.starts}) {
    STD_TORCH_CHECK(t->scalar_type() == ScalarType::Long, op, ": spatial_shapes and level_start_index must be int64");
    STD_TORCH_CHECK(t->device().type() == torch::headeronly::DeviceType::CPU || t->device() == in.value.device(), op,
                    ": spatial_shapes and level_start_index must be on the CPU or on the device of value");
  }
  for (const Tensor* t : {&in.locations, &in.weights})
    STD_TORCH_CHECK(t->device() == in.value.device(), op,
                    ": sampling_locations and attention_weights must be on the device of value");
}

inline std::vector<int64_t> ms_deform_attn_shape(const MsDeformAttnInputs& in) {
  return {in.value.size(0), in.locations.size(1), in.value.size(2) * in.value.size(3)};
}

inline void check_ms_deform_attn_grad(const Tensor& grad, const MsDeformAttnInputs& in) {
  constexpr const char* op = "mim4d::ms_deform_attn_backward";
  const std::vector<int64_t> shape = ms_deform_attn_shape(in);
  STD_TORCH_CHECK(std::equal(shape.begin(), shape.end(), grad.sizes().begin(), grad.sizes().end()), op,
                  ": grad has not the shape of the result");
  STD_TORCH_CHECK(grad.scalar_type() == in.value.scalar_type() && grad.device() == in.value.device(), op,
                  ": grad has not the dtype or not the device of value");
}

// The levels in the memory of the CPU.
inline std::vector<DeformLevel> read_levels(const MsDeformAttnInputs& in) {
  const Tensor shapes = torch::stable::contiguous(in.shapes), starts = torch::stable::contiguous(in.starts);
  std::vector<DeformLevel> levels(shapes.size(0));
  for (size_t l = 0; l < levels.size(); ++l)
    levels[l] = {data<int64_t>(shapes)[2 * l], data<int64_t>(shapes)[2 * l + 1], data<int64_t>(starts)[l]};
  return levels;
}

// Every level must have its own cells of value.
inline void check_levels(const std::vector<DeformLevel>& levels, int64_t S) {
  constexpr const char* op = "mim4d::ms_deform_attn";
  std::vector<DeformLevel> sorted = levels;
  std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.start < b.start; });
  int64_t end = 0;
  for (const DeformLevel& level : sorted) {
    STD_TORCH_CHECK(level.exact(), op, ": spatial_shapes has a level of ", level.H, " x ", level.W,
                    " cells, wanted 1 to 2^24 - 1 each");
    STD_TORCH_CHECK(level.start == end, op, ": level_start_index has a level at ", level.start, ", wanted it at ", end,
                    ", where the level before it ends");
    end += level.H * level.W;
  }
  STD_TORCH_CHECK(end == S, op, ": value has S = ", S, ", wanted ", end, " for these spatial_shapes");
}

template <class P>
void set_sizes(P& p, const MsDeformAttnInputs& in) {
  p.B = in.value.size(0), p.S = in.value.size(1), p.M = in.value.size(2), p.D = in.value.size(3);
  p.Q = in.locations.size(1), p.L = in.locations.size(3), p.P = in.locations.size(4);
}

}  // namespace mim4d
