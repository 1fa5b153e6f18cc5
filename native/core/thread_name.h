// Names the calling thread, for debuggers and profilers, and leaves every signal to the host's own threads.
#pragma once
#include <pthread.h>
#include <signal.h>

namespace ingot {

// At most 15 characters are kept by Linux.
inline void enter_thread(const char* name) {
#if defined(__APPLE__)
  pthread_setname_np(name);
#else
  pthread_setname_np(pthread_self(), name);
#endif
  sigset_t all;
  sigfillset(&all);
  // A fault of this thread must still end the process with its own signal.
  for (int fatal : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGTRAP, SIGSYS}) sigdelset(&all, fatal);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);
}

}  // namespace ingot
