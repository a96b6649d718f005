// Compiles a CUDA source as plain C++; force-included before it (g++ -x c++ -include emulated_cuda.h).
//
// Every CUDA thread runs as a fiber of one OS thread; scheduler.cpp switches between them at barriers and
// warp collectives, which record the file and line that called them.  No C++ library header is included:
// a translation unit then compiles in a few tenths of a second, and zig links without building its libc++.
#pragma once
#define HANDGRAD_EMULATED 1

#include "emulated/types.h"

#include "emulated/threads.h"

#include "emulated/barriers.h"
#include "emulated/warp.h"

#include "emulated/asynchronous_copies.h"
#include "emulated/atomics.h"
#include "emulated/math.h"
#include "emulated/memory.h"
#include "emulated/tensor_core.h"

#include "emulated/kernel.h"
