#pragma once

#include <cstdint>

namespace tflite {

struct Operator {
  std::uint8_t code;
  std::int8_t operand;
};

struct Model {
  char magic[4];
  std::uint16_t elements;
  std::uint8_t inputs;
  std::uint8_t outputs;
  std::int32_t hidden_bytes;
  std::uint16_t operators;
  Operator chain[1];
};

inline const Model* GetModel(const void* bytes) { return static_cast<const Model*>(bytes); }

}  // namespace tflite
