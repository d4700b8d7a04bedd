/* Start-up, semihosting and the instruction counter of an emulated Cortex-M. */

#include "bench.h"

#include <stddef.h>
#include <sys/stat.h>

/* ref: Arm, Semihosting for AArch32 and AArch64. */
enum { SYS_WRITE0 = 0x04, SYS_EXIT_EXTENDED = 0x20, APPLICATION_EXIT = 0x20026 };

/* ref: Armv7-M and Armv8-M Architecture Reference Manuals, system control space. */
#define SYST_CSR (*(volatile uint32_t*)0xE000E010u)
#define SYST_RVR (*(volatile uint32_t*)0xE000E014u)
#define SYST_CVR (*(volatile uint32_t*)0xE000E018u)
#define CPACR (*(volatile uint32_t*)0xE000ED88u)
enum { SYST_ENABLE = 1, SYST_TICKINT = 2, SYST_PROCESSOR_CLOCK = 4, SYST_TOP = 0xFFFFFF };

extern uint32_t data_load[], data_start[], data_end[], bss_start[], bss_end[];
extern void stack_top(void); /* An address and no function, but the table holds functions. */
extern void __libc_init_array(void);
extern int main(void);
void reset(void);
void faulted(const uint32_t* frame);
void fault(void);
void tick(void);
void abort(void) __attribute__((noreturn));

volatile uint32_t bench_interrupts;

static int semihosting(int operation, const void* argument) {
  register int r0 __asm__("r0") = operation;
  register const void* r1 __asm__("r1") = argument;
  __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
  return r0;
}

void bench_say(const char* text) { semihosting(SYS_WRITE0, text); }

void bench_exit(int status) {
  const uint32_t reason[2] = {APPLICATION_EXIT, (uint32_t)status};
  for (;;) semihosting(SYS_EXIT_EXTENDED, reason);
}

struct Moment bench_now(void) {
  struct Moment moment;
  uint32_t left;
  do {
    moment.interrupts = bench_interrupts;
    left = SYST_CVR;
  } while (moment.interrupts != bench_interrupts);
  moment.ticks = (uint64_t)moment.interrupts * (SYST_TOP + 1) + (SYST_TOP - left);
  return moment;
}

__attribute__((naked)) void bench_spin(uint32_t rounds __attribute__((unused))) {
  __asm__ volatile("1: subs r0, #1\n bne 1b\n bx lr");
}

/* INTERRUPT_INSTRUCTIONS long: the count is freed of them. */
__attribute__((naked)) void tick(void) {
  __asm__ volatile("movw r0, #:lower16:bench_interrupts\n movt r0, #:upper16:bench_interrupts\n"
                   "ldr r1, [r0]\n adds r1, #1\n str r1, [r0]\n bx lr");
}

void reset(void) {
  CPACR |= 0xFu << 20; /* The floating-point unit, and the vector extension with it. */
  __asm__ volatile("dsb\n isb");
  for (uint32_t *from = data_load, *to = data_start; to < data_end;) *to++ = *from++;
  for (uint32_t* to = bss_start; to < bss_end;) *to++ = 0;
  SYST_RVR = SYST_TOP;
  SYST_CVR = 0;
  SYST_CSR = SYST_ENABLE | SYST_TICKINT | SYST_PROCESSOR_CLOCK;
  __libc_init_array();
  bench_exit(main());
}

static void say_hex(uint32_t value) {
  char text[9];
  for (int i = 7; i >= 0; --i, value >>= 4) text[i] = "0123456789abcdef"[value & 15];
  text[8] = 0;
  bench_say(text);
}

void faulted(const uint32_t* frame) {
  bench_say("\nedgebuild fault 0x");
  say_hex(frame[6]);
  bench_say("\n");
  bench_exit(1);
}

__attribute__((naked)) void fault(void) { __asm__ volatile("mrs r0, msp\n b faulted"); }

typedef void (*Handler)(void);

__attribute__((section(".vectors"), used)) static const Handler vectors[16] = {
    stack_top, reset, fault, fault, fault, fault, fault, fault, 0, 0, 0, fault, fault, 0, fault, tick,
};

/* What the C library asks of a system that has no files, no processes and no heap. */
void* __dso_handle;
void _init(void) {}
void _fini(void) {}
void _exit(int status) { bench_exit(status); }
void* _sbrk(ptrdiff_t increment) { return (void)increment, (void*)-1; }
int _kill(int process, int signal) { return (void)process, (void)signal, bench_exit(1), -1; }
int _getpid(void) { return 1; }
int _close(int file) { return (void)file, -1; }
int _isatty(int file) { return (void)file, 1; }
int _lseek(int file, int offset, int whence) { return (void)file, (void)offset, (void)whence, 0; }
int _read(int file, char* to, int count) { return (void)file, (void)to, (void)count, 0; }
int _fstat(int file, struct stat* status) { return (void)file, status->st_mode = S_IFCHR, 0; }

int _write(int file, const char* from, int count) {
  (void)file;
  for (int i = 0; i < count; ++i) {
    const char one[2] = {from[i], 0};
    bench_say(one);
  }
  return count;
}

/* The C and C++ libraries' own would bring a heap along, and 60 KiB to print a name. */
int __aeabi_atexit(void* object, void (*destroy)(void*), void* handle) {
  return (void)object, (void)destroy, (void)handle, 0;
}

void abort(void) {
  bench_say("\nedgebuild failed abort\n");
  bench_exit(1);
}

void __cxa_pure_virtual(void) { abort(); }
