#pragma once

#include <span>

namespace mim4d {

struct BuildFact {
  const char* name;
  const char* value;
};

std::span<const BuildFact> build_facts();

}  // namespace mim4d
