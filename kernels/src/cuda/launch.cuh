// How kernels follow each other.
#pragma once

// Kernels are launched before the one before them has ended, so that what a launch costs is behind them when it has.
// Every kernel calls this before it reads or writes anything: then all that was launched before is done.
__device__ __forceinline__ void after_earlier() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  asm volatile("griddepcontrol.wait;" ::: "memory");
}
