// Runs every test vector of this package on the target and compares the outputs bit for bit.
//
// Returns 0 where all are equal, else 1, and says what differs through TFLM's log. That is silent where TFLM was built
// without its messages, or for a generic Cortex-M and was given no RegisterDebugLogCallback. A firmware with a main of
// its own defines EDGEBUILD_NO_MAIN and calls edgebuild::RunTestVectors.

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "model.h"
#include "model_settings.h"
#include "op_resolver.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_log.h"
#include "tensorflow/lite/schema/schema_generated.h"
#include "test_vector.h"

// Give another size where this core needs more, or where model_settings.h has none.
#ifndef EDGEBUILD_ARENA_BYTES
#define EDGEBUILD_ARENA_BYTES edgebuild::kArenaBytes
#endif

namespace edgebuild {

int RunTestVectors();

namespace {

alignas(16) std::uint8_t arena[EDGEBUILD_ARENA_BYTES];

template <typename T>
void SayValues([[maybe_unused]] T expected, [[maybe_unused]] T found) {
  if constexpr (std::is_integral_v<T> && sizeof(T) <= sizeof(int)) {
    MicroPrintf("  expected %d, found %d", static_cast<int>(expected), static_cast<int>(found));
  } else {
    std::array<std::uint32_t, 2> bits[2] = {};
    std::memcpy(bits[0].data(), &expected, sizeof(T));
    std::memcpy(bits[1].data(), &found, sizeof(T));
    MicroPrintf("  expected bits %08x%08x, found %08x%08x", static_cast<unsigned>(bits[0][1]),
                static_cast<unsigned>(bits[0][0]), static_cast<unsigned>(bits[1][1]), static_cast<unsigned>(bits[1][0]));
  }
}

template <typename T, std::size_t N>
bool IsEqual(const std::array<T, N>& expected, const TfLiteTensor& tensor, std::size_t vector, std::size_t output) {
  if (tensor.bytes != sizeof(T) * N) {
    MicroPrintf("vector %d, output %d: expected %d bytes, found %d", static_cast<int>(vector), static_cast<int>(output),
                static_cast<int>(sizeof(T) * N), static_cast<int>(tensor.bytes));
    return false;
  }
  for (std::size_t element = 0; element != N; ++element) {
    T found;
    std::memcpy(&found, tensor.data.raw + element * sizeof(T), sizeof(T));
    if (std::memcmp(&found, &expected[element], sizeof(T)) != 0) {
      MicroPrintf("vector %d, output %d, element %d differs:", static_cast<int>(vector), static_cast<int>(output),
                  static_cast<int>(element));
      SayValues(expected[element], found);
      return false;
    }
  }
  return true;
}

bool RunsVector(tflite::MicroInterpreter& interpreter, std::size_t vector) {
  bool fits = true;
  ForEachInput(vector, [&](std::size_t input, const auto& values) {
    TfLiteTensor* tensor = interpreter.input(input);
    fits = fits && tensor->bytes == sizeof(values[0]) * values.size();
    if (fits) std::memcpy(tensor->data.raw, values.data(), tensor->bytes);
  });
  if (!fits || interpreter.Invoke() != kTfLiteOk) {
    MicroPrintf("vector %d did not run", static_cast<int>(vector));
    return false;
  }
  bool equal = true;
  ForEachOutput(vector, [&](std::size_t output, const auto& expected) {
    equal = IsEqual(expected, *interpreter.output(output), vector, output) && equal;
  });
  return equal;
}

}  // namespace

int RunTestVectors() {
  OpResolver resolver;
  if (RegisterOperators(resolver) != kTfLiteOk) {
    MicroPrintf("an operator could not be registered");
    return 1;
  }
  tflite::MicroInterpreter interpreter(tflite::GetModel(g_model), resolver, arena, sizeof(arena));
  if (interpreter.AllocateTensors() != kTfLiteOk) {
    MicroPrintf("the model does not run in an arena of %d bytes", static_cast<int>(sizeof(arena)));
    return 1;
  }
  std::size_t equal = 0;
  for (std::size_t vector = 0; vector != kVectorCount; ++vector) equal += RunsVector(interpreter, vector) ? 1 : 0;
  MicroPrintf("%d of %d test vectors are equal", static_cast<int>(equal), static_cast<int>(kVectorCount));
  return equal == kVectorCount && kVectorCount != 0 ? 0 : 1;
}

}  // namespace edgebuild

#ifndef EDGEBUILD_NO_MAIN
int main() { return edgebuild::RunTestVectors(); }
#endif
