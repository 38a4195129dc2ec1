#pragma once

#include <stdint.h>

#include "cpu/isa.h"
#include "ms_deform_attn/params.h"

namespace mim4d {

template <class T>
struct MsDeformAttnCpuParams : MsDeformAttnParams<T> {
  const DeformLevel* levels;  // [L]
  const T* zeros;             // [D]: what lies outside of a map
};

// Who adds up the gradient of value for some heads of one batch item, in some cells.
struct DeformOwner {
  int64_t item;
  int64_t first_head, last_head;
  int64_t first_cell, last_cell;
};

// What one instruction set offers. Ranges of rows [begin, end) are independent of each other, and so are owners. A cell
// adds what its points bring in the order of (query, level, point), whoever owns it: its bits depend on nothing else.
template <class T>
struct MsDeformAttnCpu {
  using Params = MsDeformAttnCpuParams<T>;
  void (*forward)(const Params& p, int64_t begin, int64_t end);          // -> out
  void (*backward_points)(const Params& p, int64_t begin, int64_t end);  // -> grad_locations, grad_weights
  void (*backward_value)(const Params& p, const DeformOwner& owner);     // -> grad_value
};

}  // namespace mim4d

MIM4D_DECLARE_ISA(::mim4d::MsDeformAttnCpu<float>, ms_deform_attn_float)
MIM4D_DECLARE_ISA(::mim4d::MsDeformAttnCpu<double>, ms_deform_attn_double)
