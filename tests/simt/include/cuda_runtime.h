#pragma once
// Stands in for the CUDA header of this name.
#include "simt.h"
