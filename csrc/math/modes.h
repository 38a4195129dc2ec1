#pragma once
// As they cross the dispatcher; mim4d/reference/voxel_sample.py has the same numbers.

namespace mim4d {

enum class Mode : int { trilinear, smoothstep, bicubic, tricubic };
enum class Padding : int { zeros, border };

}  // namespace mim4d
