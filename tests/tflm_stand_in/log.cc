#include "tensorflow/lite/micro/micro_log.h"

#include <cstdarg>
#include <cstdio>

namespace {
void (*write_out)(const char*) = nullptr;
}

extern "C" void RegisterDebugLogCallback(void (*callback)(const char*)) { write_out = callback; }

#if !defined(TF_LITE_STRIP_ERROR_STRINGS)
void MicroPrintf(const char* format, ...) {
  if (write_out == nullptr) return;
  char text[128];
  va_list values;
  va_start(values, format);
  std::vsnprintf(text, sizeof(text), format, values);
  va_end(values);
  write_out(text);
  write_out("\n");
}
#endif
