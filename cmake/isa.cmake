# mim4d_isa_sources(target file...): compiles the files once per instruction set into the target. Each copy lives in the namespace
# mim4d::${isa} (csrc/cpu/isa.h chooses at run time). Its functions must have internal linkage or be always inlined: the linker
# merges symbols of one name, and must never keep an AVX-512 copy for all. tests/ops/test_isa.py reads the objects back with nm and objdump.
include(CheckCXXCompilerFlag)
check_cxx_compiler_flag(-mavx512f MIM4D_X86)

set(MIM4D_ISAS base)
set(MIM4D_FLAGS_base "")
if(MIM4D_X86)
  list(APPEND MIM4D_ISAS avx2 avx512)
  set(MIM4D_FLAGS_avx2 -mavx2 -mfma)
  set(MIM4D_FLAGS_avx512 -mavx512f -mavx512vl -mavx512bw -mavx512dq -mavx2 -mfma)
endif()

function(mim4d_isa_definitions target)
  if(MIM4D_X86)
    target_compile_definitions(${target} PRIVATE MIM4D_X86)
  endif()
endfunction()

function(mim4d_isa_sources target)
  mim4d_isa_definitions(${target})
  foreach(isa IN LISTS MIM4D_ISAS)
    add_library(${target}_${isa} OBJECT ${ARGN})
    mim4d_isa_definitions(${target}_${isa})
    target_compile_definitions(${target}_${isa} PRIVATE MIM4D_ISA=${isa} MIM4D_ISA_${isa})
    target_compile_options(${target}_${isa} PRIVATE ${MIM4D_FLAGS_${isa}} -fno-math-errno -fno-trapping-math
      -Wno-maybe-uninitialized -Wno-uninitialized)  # false alarms inside g++ 12's AVX-512 headers
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:${target}_${isa}>)
  endforeach()
endfunction()
