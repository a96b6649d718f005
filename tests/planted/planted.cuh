// The project's wrappers, for the planted faults.
#pragma once
#include "../../kernels/common.cuh"
#include "../../kernels/intrinsics.cuh"
