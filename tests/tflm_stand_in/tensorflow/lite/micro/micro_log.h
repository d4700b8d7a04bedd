#pragma once

#if defined(TF_LITE_STRIP_ERROR_STRINGS)
namespace tflite {
template <typename... Values>
void Ignore(const Values&...) {}
}  // namespace tflite
#define MicroPrintf(...) tflite::Ignore(__VA_ARGS__)
#else
void MicroPrintf(const char* format, ...);
#endif
