#pragma once

#include <cstddef>
#include <cstdint>

enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 };

union TfLitePtrUnion {
  char* raw;
  std::int8_t* int8;
  std::int32_t* i32;
};

struct TfLiteTensor {
  TfLitePtrUnion data;
  std::size_t bytes;
};
