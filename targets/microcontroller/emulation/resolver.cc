#include "resolver.h"

#include <new>

#include "op_resolver.h"

namespace {
// A static object with a destructor would bring the C library's atexit along, and a heap with it.
alignas(edgebuild::OpResolver) unsigned char room[sizeof(edgebuild::OpResolver)];
}  // namespace

const tflite::MicroOpResolver* bench_resolver() {
  auto* resolver = new (room) edgebuild::OpResolver;
  return edgebuild::RegisterOperators(*resolver) == kTfLiteOk ? resolver : nullptr;
}
