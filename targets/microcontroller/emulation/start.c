/* Start-up, a way out for words, and the instruction counter of an emulated Cortex-M. Not by semihosting: with it the
   program, and so the model, could open the host's files. */

#include "bench.h"

#include <stddef.h>
#include <sys/stat.h>

/* ref: Armv7-M and Armv8-M Architecture Reference Manuals, system control space. */
#define SYST_CSR (*(volatile uint32_t*)0xE000E010u)
#define SYST_RVR (*(volatile uint32_t*)0xE000E014u)
#define SYST_CVR (*(volatile uint32_t*)0xE000E018u)
#define AIRCR (*(volatile uint32_t*)0xE000ED0Cu)
#define CPACR (*(volatile uint32_t*)0xE000ED88u)
enum { SYST_ENABLE = 1, SYST_TICKINT = 2, SYST_PROCESSOR_CLOCK = 4, SYST_TOP = 0xFFFFFF };
enum { AIRCR_KEY = 0x05FA0000, AIRCR_SYSRESETREQ = 4 };

/* ref: Arm, Cortex-M System Design Kit Technical Reference Manual, APB UART. */
struct Uart {
  volatile uint32_t data, state, control, interrupt, divider;
};
enum { UART_IS_FULL = 1, UART_TRANSMITS = 1, UART_FASTEST = 16 };

extern struct Uart uart; /* The linker script says where the machine has it. */

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

static void say_character(char character) {
  uart.data = (unsigned char)character;
  while (uart.state & UART_IS_FULL) continue;
}

void bench_say(const char* text) {
  while (*text) say_character(*text++);
}

static void say_hex(uint32_t value) {
  for (int shift = 28; shift >= 0; shift -= 4) say_character("0123456789abcdef"[value >> shift & 15]);
}

/* QEMU ends where a machine would begin anew. */
void bench_exit(int status) {
  bench_say("\nedgebuild exit ");
  say_hex((uint32_t)status);
  bench_say("\n");
  __asm__ volatile("dsb");
  AIRCR = AIRCR_KEY | AIRCR_SYSRESETREQ;
  for (;;) continue;
}

struct Moment bench_now(void) {
  const uint32_t before = bench_interrupts;
  const uint32_t left = SYST_CVR;
  const uint32_t after = bench_interrupts;
  /* The interrupt may have come in between: then a clock still near its top was read after it. There is no branch, so
     that a moment takes the same instructions wherever the interrupt falls. */
  const uint32_t interrupts = before + ((after - before) & left >> 23);
  return (struct Moment){(uint64_t)interrupts * (SYST_TOP + 1) + (SYST_TOP - left), interrupts};
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
  uart.divider = UART_FASTEST;
  uart.control = UART_TRANSMITS;
  SYST_RVR = SYST_TOP;
  SYST_CVR = 0;
  SYST_CSR = SYST_ENABLE | SYST_TICKINT | SYST_PROCESSOR_CLOCK;
  __libc_init_array();
  bench_exit(main());
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
  for (int i = 0; i < count; ++i) say_character(from[i]);
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
