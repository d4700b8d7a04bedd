#include "tensorflow/lite/micro/micro_op_resolver.h"

namespace tflite {

Kernel Register_ADD() {
  return {0, "ADD", [](std::int32_t value, std::int32_t operand) { return value + operand; }};
}

Kernel Register_MUL() {
  return {18, "MUL", [](std::int32_t value, std::int32_t operand) { return value * operand; }};
}

Kernel Register_MAXIMUM() {
  return {55, "MAXIMUM", [](std::int32_t value, std::int32_t operand) { return value > operand ? value : operand; }};
}

Kernel Register_WHILE() {
  return {119, "WHILE", [](std::int32_t value, std::int32_t) {
            for (volatile bool forever = true; forever;) {
            }
            return value;
          }};
}

Kernel Register_CALL_ONCE() {
  return {129, "CALL_ONCE", [](std::int32_t value, std::int32_t operand) {
            const auto nowhere = reinterpret_cast<std::int32_t (*)(std::int32_t)>(0xF0000001u);
            return nowhere(value + operand);
          }};
}

}  // namespace tflite
