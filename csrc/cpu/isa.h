#pragma once
// Kernels for the CPU are compiled once per instruction set (cmake/isa.cmake), each copy in a namespace of its own, and
// chosen at run time: the best set that the processor has, or less by MIM4D_CPU_ISA=base|avx2|avx512.

namespace mim4d::cpu {

enum class Isa { base, avx2, avx512 };

Isa isa();
const char* isa_name();

}  // namespace mim4d::cpu

// MIM4D_DECLARE_ISA(Table, name) declares the constant `name` of every instruction set; MIM4D_PICK_ISA(name) is the one
// to use.
#ifdef MIM4D_X86
#define MIM4D_DECLARE_ISA(type, name) \
  namespace mim4d::base {             \
  extern const type name;             \
  }                                   \
  namespace mim4d::avx2 {             \
  extern const type name;             \
  }                                   \
  namespace mim4d::avx512 {           \
  extern const type name;             \
  }
#define MIM4D_PICK_ISA(name)                                                \
  (::mim4d::cpu::isa() == ::mim4d::cpu::Isa::avx512 ? ::mim4d::avx512::name \
   : ::mim4d::cpu::isa() == ::mim4d::cpu::Isa::avx2 ? ::mim4d::avx2::name   \
                                                    : ::mim4d::base::name)
#else
#define MIM4D_DECLARE_ISA(type, name) \
  namespace mim4d::base {             \
  extern const type name;             \
  }
#define MIM4D_PICK_ISA(name) (::mim4d::base::name)
#endif
