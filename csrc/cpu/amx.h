// Whether this process may use AMX, the tiles of 16 rows of 64 bytes that current Intel servers
// multiply with each other.
#pragma once
#include <string>

namespace agf {

// Why it may not, for people; empty where it may. The first call asks the processor and the kernel
// of the operating system, which keeps the tiles of a process only once it was asked to, and
// multiplies one tile of each type.
const std::string& amx_refusal();

}  // namespace agf
