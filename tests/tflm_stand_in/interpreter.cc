#include "tensorflow/lite/micro/micro_interpreter.h"

#include <cstring>

#include "tensorflow/lite/micro/micro_log.h"

namespace tflite {

MicroInterpreter::MicroInterpreter(const Model* model, const MicroOpResolver& resolver, std::uint8_t* arena,
                                   std::size_t arena_bytes, MicroResourceVariables* variables,
                                   MicroProfilerInterface* profiler)
    : model_(model), resolver_(resolver), arena_(arena), arena_bytes_(arena_bytes), profiler_(profiler) {
  (void)variables;
#if defined(TF_LITE_STRIP_ERROR_STRINGS)
  profiler_ = nullptr;
#endif
}

char* MicroInterpreter::Take(std::size_t bytes) {
  const std::size_t start = used_;
  used_ += (bytes + 15) / 16 * 16;
  return reinterpret_cast<char*>(arena_ + start);
}

TfLiteStatus MicroInterpreter::AllocateTensors() {
  const std::size_t elements = model_->elements;
  if (std::memcmp(model_->magic, "TINY", 4) != 0 || model_->inputs > kMost || model_->outputs > kMost) {
    MicroPrintf("this is no model of ours");
    return kTfLiteError;
  }
  for (std::size_t i = 0; i != model_->operators; ++i) {
    if (resolver_.Find(model_->chain[i].code) == nullptr) {
      MicroPrintf("no kernel was registered for code %d", model_->chain[i].code);
      return kTfLiteError;
    }
  }
  sums_ = reinterpret_cast<std::int32_t*>(Take(elements * 4));
  for (std::size_t i = 0; i != model_->inputs; ++i) inputs_[i] = {{Take(elements)}, elements};
  for (std::size_t i = 0; i != model_->outputs; ++i) {
    const std::size_t bytes = i == 0 ? elements : elements * 4;
    outputs_[i] = {{Take(bytes)}, bytes};
  }
  const int missing = static_cast<int>(used_) + model_->hidden_bytes - static_cast<int>(arena_bytes_);
  if (missing > 0) {
    MicroPrintf("the arena has %d bytes and %d are missing", static_cast<int>(arena_bytes_), missing);
    return kTfLiteError;
  }
  return kTfLiteOk;
}

TfLiteStatus MicroInterpreter::Invoke() {
  for (std::size_t e = 0; e != model_->elements; ++e) {
    sums_[e] = 0;
    for (std::size_t i = 0; i != model_->inputs; ++i) sums_[e] += inputs_[i].data.int8[e];
  }
  for (std::size_t o = 0; o != model_->operators; ++o) {
    const Operator& step = model_->chain[o];
    const Kernel* kernel = resolver_.Find(step.code);
    const std::uint32_t event = profiler_ ? profiler_->BeginEvent(kernel->name) : 0;
    for (std::size_t e = 0; e != model_->elements; ++e) sums_[e] = kernel->apply(sums_[e], step.operand);
    if (profiler_) profiler_->EndEvent(event);
  }
  for (std::size_t i = 0; i != model_->outputs; ++i) {
    for (std::size_t e = 0; e != model_->elements; ++e) {
      const std::int32_t value = sums_[e] + static_cast<std::int32_t>(i);
      if (i == 0) {
        outputs_[i].data.int8[e] = static_cast<std::int8_t>(value);
      } else {
        outputs_[i].data.i32[e] = value;
      }
    }
  }
  return kTfLiteOk;
}

}  // namespace tflite
