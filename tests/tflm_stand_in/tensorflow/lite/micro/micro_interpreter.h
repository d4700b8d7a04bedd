#pragma once

#include "tensorflow/lite/c/common.h"
#include "tensorflow/lite/micro/micro_op_resolver.h"
#include "tensorflow/lite/micro/micro_profiler_interface.h"
#include "tensorflow/lite/schema/schema_generated.h"

namespace tflite {

class MicroResourceVariables;

class MicroInterpreter {
 public:
  MicroInterpreter(const Model* model, const MicroOpResolver& resolver, std::uint8_t* arena, std::size_t arena_bytes,
                   MicroResourceVariables* variables = nullptr, MicroProfilerInterface* profiler = nullptr);
  TfLiteStatus AllocateTensors();
  TfLiteStatus Invoke();
  TfLiteTensor* input(std::size_t index) { return &inputs_[index]; }
  TfLiteTensor* output(std::size_t index) { return &outputs_[index]; }
  std::size_t arena_used_bytes() const { return used_; }

 private:
  char* Take(std::size_t bytes);

  static constexpr std::size_t kMost = 4;
  const Model* model_;
  const MicroOpResolver& resolver_;
  std::uint8_t* arena_;
  std::size_t arena_bytes_;
  MicroProfilerInterface* profiler_;
  std::size_t used_ = 0;
  std::int32_t* sums_ = nullptr;
  TfLiteTensor inputs_[kMost];
  TfLiteTensor outputs_[kMost];
};

}  // namespace tflite
