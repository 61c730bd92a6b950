// What the headers in use call and an older system's libraries lack; see old_systems.h.
#include "old_systems.h"

#if defined(AGF_FIRST_GLIBC)
#include <new>
#include <sstream>

namespace std {

// GCC 11's containers call it where a size overflows.
void __throw_bad_array_new_length() { throw bad_array_new_length(); }

template basic_stringstream<char>::basic_stringstream();    // GCC 9: default constructors of
template basic_ostringstream<char>::basic_ostringstream();  // their own

}  // namespace std

// glibc 2.32 keeps it; 0 where there may be several threads, which std::shared_ptr asks.
extern "C" __attribute__((visibility("hidden"))) char agf_single_threaded __asm__(
    "__libc_single_threaded");
char agf_single_threaded = 0;
#endif
