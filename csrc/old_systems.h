// Lets what is built here run on systems as old as a wheel for manylinux_2_28 has to: glibc 2.28
// and the libstdc++ of GCC 8. Included before everything else. Where glibc or libstdc++ has a
// function in several versions, the linker takes the newest unless told; old_systems.cpp has what
// the older lack.
#pragma once
#include <cstddef>

#if defined(__GLIBC__) && defined(__GLIBCXX__)
#if defined(__x86_64__)
#define AGF_FIRST_GLIBC "GLIBC_2.2.5"
#elif defined(__aarch64__)
#define AGF_FIRST_GLIBC "GLIBC_2.17"
#endif
#endif

#if defined(AGF_FIRST_GLIBC)
__asm__(".symver exp, exp@" AGF_FIRST_GLIBC);  // the newer does without errno
__asm__(".symver dlopen, dlopen@" AGF_FIRST_GLIBC);
__asm__(".symver dlsym, dlsym@" AGF_FIRST_GLIBC);
// std::condition_variable::wait(std::unique_lock<std::mutex>&), which became noexcept
__asm__(
    ".symver _ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE, "
    "_ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE@GLIBCXX_3.4.11");
#endif
