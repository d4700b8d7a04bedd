/* The package's resolver, in an object of its own: its code is the firmware's and not the bench's. */

#ifndef EDGEBUILD_RESOLVER_H_
#define EDGEBUILD_RESOLVER_H_

#include "tensorflow/lite/micro/micro_op_resolver.h"

/* With all operators registered, or none at all. */
const tflite::MicroOpResolver* bench_resolver();

#endif /* EDGEBUILD_RESOLVER_H_ */
