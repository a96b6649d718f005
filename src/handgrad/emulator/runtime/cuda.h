// Nothing: what CUDA sources take from here is in emulated_cuda.h.
#pragma once
