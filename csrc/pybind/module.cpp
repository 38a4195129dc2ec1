// mim4d._C: what the dispatcher cannot express. No tensors and no torch, so it loads under any torch.

#include <pybind11/pybind11.h>
#include <stdexcept>
#include <string>

#include "cpu/isa.h"
#include "math/modes.h"
#include "pybind/build_info.h"
#ifdef MIM4D_WITH_CUDA
#include "ms_deform_attn/cuda.h"
#include "sdf_march/cuda.h"
#include "voxel_pool/cuda.h"
#include "voxel_pull/cuda.h"
#include "voxel_sample/cuda.h"
#endif

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  for (const auto& [name, value] : mim4d::build_facts()) info[name] = value;
  return info;
}

#ifdef MIM4D_WITH_CUDA
void check(cudaError_t status, const char* kernel) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(kernel) + ": " + cudaGetErrorString(status));
}

py::list kernel_attributes() {
  py::list kernels;
  for (const auto& list : {mim4d::voxel_sample_kernels(), mim4d::sdf_march_kernels(), mim4d::ms_deform_attn_kernels(),
                           mim4d::voxel_pool_kernels(), mim4d::voxel_pull_kernels()})
    for (const mim4d::KernelEntry& kernel : list) {
      cudaFuncAttributes attributes;
      check(cudaFuncGetAttributes(&attributes, kernel.function), kernel.name);
      int blocks = 0;
      check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel.function, kernel.threads, 0), kernel.name);
      py::dict entry;
      entry["name"] = kernel.name;
      entry["threads"] = kernel.threads;
      entry["registers"] = attributes.numRegs;
      entry["shared_bytes"] = attributes.sharedSizeBytes;
      entry["local_bytes"] = attributes.localSizeBytes;
      entry["arch"] = attributes.binaryVersion;
      entry["blocks_per_sm"] = blocks;
      kernels.append(entry);
    }
  return kernels;
}
#else
py::list kernel_attributes() { throw std::runtime_error("mim4d was built without CUDA"); }
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Facts about the native build.";
  m.def("build_info", &build_info, "Versions, flags and revision that the native code was built from.");
  m.def("cpu_isa", &mim4d::cpu::isa_name, "The instruction set of the CPU kernels in this process.");
  m.def("kernel_attributes", &kernel_attributes, "Registers, memory and occupancy of the CUDA kernels; needs a GPU.");
  using mim4d::Mode, mim4d::Padding;
  py::enum_<Mode>(m, "Mode")
      .value("trilinear", Mode::trilinear)
      .value("smoothstep", Mode::smoothstep)
      .value("bicubic", Mode::bicubic)
      .value("tricubic", Mode::tricubic);
  py::enum_<Padding>(m, "Padding").value("zeros", Padding::zeros).value("border", Padding::border);
}
