#pragma once

#include <cstdint>

#include "tensorflow/lite/c/common.h"

namespace tflite {

struct Kernel {
  std::uint8_t code;
  const char* name;
  std::int32_t (*apply)(std::int32_t value, std::int32_t operand);
};

class MicroOpResolver {
 public:
  virtual const Kernel* Find(std::uint8_t code) const = 0;

 protected:
  ~MicroOpResolver() = default;
};

}  // namespace tflite
