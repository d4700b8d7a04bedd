// Runs a package on an emulated core: finds the smallest arena, compares every test vector bit for bit, and counts
// instructions. What it says, a line beginning with "edgebuild" each, is read by answer.py.

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "bench.h"
#include "model.h"
#include "resolver.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_profiler_interface.h"
#include "tensorflow/lite/schema/schema_generated.h"
#include "test_vector.h"

extern "C" {
extern std::uint8_t arena_start[], arena_end[];
// There where TFLM was built for a generic Cortex-M, whose log is silent until it is given a way out.
void RegisterDebugLogCallback(void (*callback)(const char*)) __attribute__((weak));
}

// Interfaces with virtual destructors name it; the library's own would bring a heap along.
void operator delete(void*) noexcept { bench_exit(1); }
void operator delete(void*, std::size_t) noexcept { bench_exit(1); }

namespace {

constexpr std::size_t kStep = 16;
constexpr std::size_t kMostEvents = 1024;
constexpr std::uint32_t kSpinRounds = 3000000;  // Longer than the clock's 24 bits reach.

bool is_quiet = false;

// In hexadecimal: the division that decimals take would bring 5 KiB of the compiler's library along.
void SayNumber(std::uint64_t value) {
  char text[17];
  char* place = text + sizeof(text) - 1;
  *place = 0;
  do {
    *--place = "0123456789abcdef"[value & 15];
    value >>= 4;
  } while (value != 0);
  bench_say(" ");
  bench_say(place);
}

void Say(const char* what) {
  bench_say("\nedgebuild ");
  bench_say(what);
}

template <typename... Numbers>
void Say(const char* what, Numbers... numbers) {
  Say(what);
  (SayNumber(numbers), ...);
  bench_say("\n");
}

// The bits of an element; its type is said before.
template <typename T>
void SayBits(T value) {
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(value));
  SayNumber(bits);
}

void Log(const char* text) {
  if (!is_quiet) bench_say(text);
}

[[noreturn]] void Fail(const char* step) {
  Say("failed ");
  bench_say(step);
  bench_say("\n");
  bench_exit(1);
}

// What passed between two moments, the reading of the clock included.
struct Span {
  std::uint64_t ticks;
  std::uint32_t interrupts;
};

Span Between(const Moment& from, const Moment& to) {
  return {to.ticks - from.ticks, to.interrupts - from.interrupts};
}

Span Nothing() {
  const Moment from = bench_now();
  return Between(from, bench_now());
}

__attribute__((noinline)) Span Spin(std::uint32_t rounds) {
  const Moment from = bench_now();
  bench_spin(rounds);
  return Between(from, bench_now());
}

void SaySpan(const char* what, const Span& span) { Say(what, span.ticks, span.interrupts); }

// Events of the main graph: what runs inside of one, a loop's body, belongs to it.
class Profiler : public tflite::MicroProfilerInterface {
 public:
  std::uint32_t BeginEvent(const char* tag) override {
    if (depth_++ != 0) return kMostEvents;
    if (count_ == kMostEvents) {
      ++unlisted_;
      return kMostEvents;
    }
    events_[count_].tag = tag;
    events_[count_].from = bench_now();
    return count_++;
  }

  void EndEvent(std::uint32_t event) override {
    const Moment to = bench_now();
    if (--depth_ == 0 && event < kMostEvents) events_[event].to = to;
  }

  void SayEvents() const {
    for (std::uint32_t i = 0; i != count_; ++i) {
      const Span span = Between(events_[i].from, events_[i].to);
      Say("operator");
      SayNumber(span.ticks);
      SayNumber(span.interrupts);
      bench_say(" ");
      bench_say(events_[i].tag);
      bench_say("\n");
    }
    Say("unlisted", unlisted_);
  }

 private:
  struct Event {
    const char* tag;
    Moment from, to;
  };
  std::uint32_t depth_ = 0;
  std::uint32_t count_ = 0;
  std::uint32_t unlisted_ = 0;
  std::array<Event, kMostEvents> events_;
};

Profiler profiler;

struct Bench {
  const tflite::Model* model;
  const tflite::MicroOpResolver& resolver;

  tflite::MicroInterpreter Interpreter(std::size_t arena, tflite::MicroProfilerInterface* profiler = nullptr) const {
    return tflite::MicroInterpreter(model, resolver, arena_start, arena, nullptr, profiler);
  }
};

bool Fits(const Bench& bench, std::size_t arena) {
  auto interpreter = bench.Interpreter(arena);
  return interpreter.AllocateTensors() == kTfLiteOk;
}

std::size_t Used(const Bench& bench) {
  auto interpreter = bench.Interpreter(static_cast<std::size_t>(arena_end - arena_start));
  if (interpreter.AllocateTensors() != kTfLiteOk) Fail("allocate");
  return interpreter.arena_used_bytes();
}

// What TFLM says it used can be too little or too much: from there outwards, then between. Far smaller arenas are not
// tried, since TFLM writes past their ends.
std::size_t Smallest(const Bench& bench, std::size_t used) {
  const auto all = static_cast<std::size_t>(arena_end - arena_start) / kStep * kStep;
  std::size_t fits = (used + kStep - 1) / kStep * kStep;
  std::size_t fails = fits;
  for (std::size_t step = kStep; !Fits(bench, fits); step *= 2) {
    fails = fits;
    fits = all - fits < step ? all : fits + step;
  }
  for (std::size_t step = kStep; fails == fits || (fails != 0 && Fits(bench, fails)); step *= 2) {
    fails = fits > step ? fits - step : 0;
  }
  while (fits - fails > kStep) {
    const std::size_t middle = (fits + fails) / 2 / kStep * kStep;
    (Fits(bench, middle) ? fits : fails) = middle;
  }
  return fits;
}

void Fill(tflite::MicroInterpreter& interpreter, std::size_t vector) {
  edgebuild::ForEachInput(vector, [&](std::size_t input, const auto& values) {
    TfLiteTensor* tensor = interpreter.input(input);
    if (tensor->bytes != sizeof(values[0]) * values.size()) Fail("input");
    std::memcpy(tensor->data.raw, values.data(), tensor->bytes);
  });
}

// Inlined nowhere, so that the same instructions stand around every call.
__attribute__((noinline)) Span Invoke(tflite::MicroInterpreter& interpreter) {
  const Moment from = bench_now();
  const TfLiteStatus status = interpreter.Invoke();
  const Moment to = bench_now();
  if (status != kTfLiteOk) Fail("invoke");
  return Between(from, to);
}

template <typename T, std::size_t N>
void Compare(std::size_t vector, std::size_t output, const std::array<T, N>& expected, const TfLiteTensor& tensor) {
  if (tensor.bytes != sizeof(T) * N) Fail("output");
  std::size_t differ = 0, first = 0;
  T found{}, found_first{};
  for (std::size_t element = N; element-- != 0;) {
    std::memcpy(&found, tensor.data.raw + element * sizeof(T), sizeof(T));
    if (std::memcmp(&found, &expected[element], sizeof(T)) == 0) continue;
    ++differ;
    first = element;
    found_first = found;
  }
  if (differ == 0) return;
  Say("differs");
  for (const std::size_t number : {vector, output, first, differ, N}) SayNumber(number);
  bench_say(std::is_floating_point_v<T> ? " float" : std::is_signed_v<T> ? " signed" : " unsigned");
  SayNumber(sizeof(T));
  SayBits(expected[first]);
  SayBits(found_first);
  bench_say("\n");
}

void RunVectors(tflite::MicroInterpreter& interpreter) {
  for (std::size_t vector = 0; vector != edgebuild::kVectorCount; ++vector) {
    Fill(interpreter, vector);
    SaySpan("vector", Invoke(interpreter));
    edgebuild::ForEachOutput(vector, [&](std::size_t output, const auto& expected) {
      Compare(vector, output, expected, *interpreter.output(output));
    });
  }
}

}  // namespace

int main() {
  if (RegisterDebugLogCallback) RegisterDebugLogCallback(Log);
  SaySpan("nothing", Nothing());
  SaySpan("spin", Spin(1));
  SaySpan("spin", Spin(kSpinRounds + 1));
  Say("rounds", kSpinRounds);
  const tflite::MicroOpResolver* resolver = bench_resolver();
  if (resolver == nullptr) Fail("register");
  const Bench bench{tflite::GetModel(edgebuild::g_model), *resolver};
  const std::size_t used = Used(bench);
  is_quiet = true;
  const std::size_t smallest = Smallest(bench, used);
  is_quiet = false;
  Say("arena", used, smallest);
  {
    auto interpreter = bench.Interpreter(smallest);
    if (interpreter.AllocateTensors() != kTfLiteOk) Fail("allocate");
    RunVectors(interpreter);
  }
  auto interpreter = bench.Interpreter(smallest, &profiler);
  if (interpreter.AllocateTensors() != kTfLiteOk) Fail("allocate");
  if (edgebuild::kVectorCount != 0) Fill(interpreter, 0);
  Invoke(interpreter);
  profiler.SayEvents();
  Say("end");
  bench_say("\n");
  return 0;
}
