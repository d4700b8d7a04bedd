/* What the bench gives to the program that runs on it: words to the host, an end, and a count of instructions. */

#ifndef EDGEBUILD_BENCH_H_
#define EDGEBUILD_BENCH_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A moment: ticks of the processor's clock, and how often the interrupt that extends its 24 bits has run. */
struct Moment {
  uint64_t ticks;
  uint32_t interrupts;
};

void bench_say(const char* text);
void bench_exit(int status) __attribute__((noreturn));
struct Moment bench_now(void);

/* Two instructions a round, for which bench_now can be held to account. */
void bench_spin(uint32_t rounds);

#ifdef __cplusplus
}
#endif

#endif /* EDGEBUILD_BENCH_H_ */
