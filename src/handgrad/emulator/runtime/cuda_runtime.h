// What CUDA's own brings besides what is in emulated_cuda.h: the names of math.h, as INFINITY and M_PI.
#pragma once
#include <math.h>
