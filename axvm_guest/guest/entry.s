# From 32-bit protected mode (PVH) or 16-bit real mode (a SIPI) to Rust in long mode.
#
#   PVH entry:  start32 ------------------> protected --> long_mode --> guest_main(is this the first?)
#   SIPI:       trampoline at 0x10000 ---^
#
# GDT: 0x08 code, 32 bits; 0x10 data; 0x18 code, 64 bits. Macros are in long_mode.s.
# Spec: Intel SDM volume 3, 10.4.4 "MP Initialization Example".

xen_note

.section .text
.code32
.globl start32
start32:
    cli
    movl %ebx, start_info
    movl %cr0, %eax
    movl %eax, entry_registers
    movl %cr4, %eax
    movl %eax, entry_registers + 4
    movl $0xc0000080, %ecx          # EFER
    rdmsr
    movl %eax, entry_registers + 8
    lgdtl gdt_pointer
    ljmp $0x08, $protected
protected:
    to_long_mode

.code64
long_mode:                          # a stack of 8 KiB by APIC id, from 5 MiB on: no counter is shared
    movl $1, %eax
    cpuid
    shrl $24, %ebx
    movl %ebx, %esp
    incl %esp
    shll $13, %esp
    addl $0x500000, %esp
    movl $0x1b, %ecx                # IA32_APIC_BASE
    rdmsr
    movl %eax, %edi
    shrl $8, %edi
    andl $1, %edi                   # is this the bootstrap processor?
    xorl %ebp, %ebp
    call guest_main
park:
    cli
    hlt
    jmp park

# One stub for each vector; those from 32 on count themselves and end the interrupt.
.globl stubs
.align 16
stubs:
    .set vector, 0
    .rept 64
    .align 16
    pushq $vector
    jmp interrupt
    .set vector, vector + 1
    .endr
interrupt:
    pushq %rax
    movq 8(%rsp), %rax
    cmpl $32, %eax
    jb fault
    lock incl interrupt_counts(, %rax, 4)
    movl $0xfee000b0, %eax          # EOI
    movl $0, (%rax)
    popq %rax
    addq $8, %rsp
    iretq
fault:                              # on the stack: rax, vector, then error code or rip
    movl %eax, %edi
    movq 16(%rsp), %rsi
    movq 24(%rsp), %rdx
    movq %cr2, %rcx
    andq $-16, %rsp
    call exception

sipi_trampoline limit=31

.code64
.section .data
.align 16
gdt:
    .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00af9b000000ffff
gdt_pointer:
    .word 31
    .long gdt
identity_map rights=3, fifth="window_directory + 3"

.section .bss
.globl window_directory, start_info, entry_registers
.align 4096
window_directory: .skip 4096        # one more GiB, for one page at a time
.align 16
start_info: .skip 8
entry_registers: .skip 16
