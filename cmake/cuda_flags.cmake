# mim4d_cuda_flags(target file...): the flags of nvcc_flags.txt for the target, and for each of its files the wall against spills: a
# kernel that spills registers fails the build. ptxas cannot exempt one kernel, and takes no flag back; so a file of which
# csrc/allowed_spills.txt lists a kernel does without the wall, and tests/test_cuda_build.py alone watches its other kernels.
set(MIM4D_ALLOWED_SPILLS ${CMAKE_CURRENT_SOURCE_DIR}/csrc/allowed_spills.txt)
set(MIM4D_NVCC_FLAGS_FILE ${CMAKE_CURRENT_LIST_DIR}/nvcc_flags.txt)

function(mim4d_cuda_flags target)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${MIM4D_NVCC_FLAGS_FILE} ${MIM4D_ALLOWED_SPILLS})
  file(STRINGS ${MIM4D_NVCC_FLAGS_FILE} flags REGEX "^-")
  file(STRINGS ${MIM4D_ALLOWED_SPILLS} allowed REGEX "^[^#]")
  target_compile_options(${target} PRIVATE ${flags})
  foreach(file IN LISTS ARGN)
    string(REGEX REPLACE "^csrc/" "" name ${file})
    string(REPLACE "." "\\." pattern ${name})
    if(NOT "${allowed}" MATCHES "(^|;) *${pattern} *[|]")
      set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS -Xptxas=--warn-on-spills)
    endif()
  endforeach()
endfunction()
