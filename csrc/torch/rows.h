#pragma once

#include <algorithm>

#include "torch/stable.h"
#include "torch/transpose.h"

namespace mim4d {

// Does t, (A..., C, R...) with its channels in dimension `d`, lie as [A, R, C] without gaps? The stride of a dimension
// of size 1 says nothing.
inline bool has_rows(const Tensor& t, int64_t d) {
  int64_t expected = 1;
  const auto fits = [&](int64_t i) {
    const bool fits = t.size(i) == 1 || t.stride(i) == expected;
    expected *= t.size(i);
    return fits;
  };
  if (!fits(d)) return false;
  for (int64_t i = t.dim() - 1; i > d; --i)
    if (!fits(i)) return false;
  for (int64_t i = d - 1; i >= 0; --i)
    if (!fits(i)) return false;
  return true;
}

// A CPU tensor (A..., C, R...) of float or double that lies as [A, R, C]: itself, or a transposed copy.
inline Tensor rows(const Tensor& t, int64_t d) {
  if (has_rows(t, d)) return t;
  const Tensor from = torch::stable::contiguous(t);
  const Tensor to = torch::stable::new_empty(t, {t.numel()});
  int64_t A = 1, R = 1;
  for (int64_t i = 0; i < d; ++i) A *= t.size(i);
  for (int64_t i = d + 1; i < t.dim(); ++i) R *= t.size(i);
  const int64_t C = t.size(d);
  dispatch_floating("rows", t.scalar_type(),
                    [&]<class T>() { transpose_items(data<T>(from), C * R, R, mutable_data<T>(to), A, R, C); });
  return to;
}

// A contiguous tensor of the shape of `like`, (A..., C, R...), from its rows [A, R, C] on the CPU.
inline Tensor from_rows(const Tensor& rows, const Tensor& like, int64_t d) {
  int64_t A = 1, R = 1;
  for (int64_t i = 0; i < d; ++i) A *= like.size(i);
  for (int64_t i = d + 1; i < like.dim(); ++i) R *= like.size(i);
  const Tensor to = torch::stable::new_empty(rows, like.sizes());
  const int64_t C = like.size(d);
  dispatch_floating("rows", rows.scalar_type(),
                    [&]<class T>() { transpose_items(data<T>(rows), C * R, C, mutable_data<T>(to), A, C, R); });
  return to;
}

// run(first, last, to) for the rows of a result of rows of C values, in the dtype T of the arithmetic. Where it is
// stored in another one, a slab at a time is converted: the whole is never there twice.
template <class T, class Run>
void for_slabs(const Tensor& result, int64_t rows, int64_t C, ScalarType wide, Run&& run) {
  if (rows == 0 || C == 0) return;
  if (result.scalar_type() == wide) return run(int64_t{0}, rows, mutable_data<T>(result));
  constexpr int64_t slab = 4096;
  Tensor buffer = torch::stable::new_empty(result, {std::min(rows, slab), C}, wide);
  Tensor all =
      torch::stable::from_blob(result.mutable_data_ptr(), {rows, C}, {C, 1}, result.device(), result.scalar_type());
  for (int64_t first = 0; first < rows; first += slab) {
    const int64_t last = std::min(first + slab, rows);
    run(first, last, mutable_data<T>(buffer));
    Tensor part = torch::stable::narrow(all, 0, first, last - first);
    torch::stable::copy_(part, torch::stable::narrow(buffer, 0, 0, last - first));
  }
}

}  // namespace mim4d
