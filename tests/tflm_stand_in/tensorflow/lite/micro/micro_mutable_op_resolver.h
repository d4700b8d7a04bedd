#pragma once

#include "tensorflow/lite/micro/micro_log.h"
#include "tensorflow/lite/micro/micro_op_resolver.h"

namespace tflite {

Kernel Register_ADD();
Kernel Register_CALL_ONCE();
Kernel Register_CEIL();
Kernel Register_FLOOR();
Kernel Register_MAXIMUM();
Kernel Register_MUL();
Kernel Register_SOFTMAX();
Kernel Register_WHILE();

template <unsigned Most>
class MicroMutableOpResolver final : public MicroOpResolver {
 public:
  TfLiteStatus AddAdd() { return Keep(Register_ADD()); }
  TfLiteStatus AddCallOnce() { return Keep(Register_CALL_ONCE()); }
  TfLiteStatus AddCeil() { return Keep(Register_CEIL()); }
  TfLiteStatus AddFloor() { return Keep(Register_FLOOR()); }
  TfLiteStatus AddMaximum() { return Keep(Register_MAXIMUM()); }
  TfLiteStatus AddMul() { return Keep(Register_MUL()); }
  TfLiteStatus AddSoftmax() { return Keep(Register_SOFTMAX()); }
  TfLiteStatus AddWhile() { return Keep(Register_WHILE()); }

  const Kernel* Find(std::uint8_t code) const override {
    for (unsigned i = 0; i != count_; ++i) {
      if (kernels_[i].code == code) return &kernels_[i];
    }
    return nullptr;
  }

 private:
  TfLiteStatus Keep(const Kernel& kernel) {
    if (count_ == Most) {
      MicroPrintf("no room for %s", kernel.name);
      return kTfLiteError;
    }
    kernels_[count_++] = kernel;
    return kTfLiteOk;
  }

  Kernel kernels_[Most];
  unsigned count_ = 0;
};

}  // namespace tflite
