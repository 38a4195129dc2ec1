# Writes build_info.cpp. Its content alone holds the revision, so that a commit rebuilds one small file.
find_package(Git QUIET)
set(MIM4D_REVISION "unknown")
if(Git_FOUND)
  execute_process(COMMAND ${GIT_EXECUTABLE} describe --always --dirty --abbrev=12 --exclude "*"
                  WORKING_DIRECTORY ${CMAKE_SOURCE_DIR} OUTPUT_VARIABLE _revision RESULT_VARIABLE _status
                  ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(_status EQUAL 0)
    set(MIM4D_REVISION "${_revision}")
  endif()
endif()
if(DEFINED ENV{MIM4D_REVISION})  # of a tree that git does not know
  set(MIM4D_REVISION "$ENV{MIM4D_REVISION}")
endif()
set(MIM4D_BUILD_INFO_CPP ${CMAKE_BINARY_DIR}/generated/build_info.cpp)
configure_file(csrc/pybind/build_info.cpp.in ${MIM4D_BUILD_INFO_CPP} @ONLY)
