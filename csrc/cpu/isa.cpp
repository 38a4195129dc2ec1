#include "cpu/isa.h"

#include <cstdlib>
#include <string_view>

namespace mim4d::cpu {
namespace {

Isa supported() {
#ifdef MIM4D_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  return avx512 ? Isa::avx512 : avx2 ? Isa::avx2 : Isa::base;
#else
  return Isa::base;
#endif
}

Isa choose() {
  const Isa best = supported();
  const char* variable = std::getenv("MIM4D_CPU_ISA");
  const std::string_view asked = variable ? variable : "";
  const Isa limit = asked == "base" ? Isa::base : asked == "avx2" ? Isa::avx2 : Isa::avx512;
  return limit < best ? limit : best;
}

}  // namespace

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

const char* isa_name() {
  constexpr const char* names[] = {"base", "avx2", "avx512"};
  return names[static_cast<int>(isa())];
}

}  // namespace mim4d::cpu
