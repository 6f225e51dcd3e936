# The bench guest: its first instructions say that it runs; then it halts, or goes to CPL3 and does its job there.
#
#   PVH entry: start32 --'~' on COM1--> job says halt? hlt
#                                       else long mode --> TSS with an I/O bitmap --iretq--> bench_main at CPL3
#
# GDT: 0x08 code, 32 bits; 0x10 data; 0x18 code, 64 bits; 0x20 data of CPL3; 0x28 code, 64 bits, of CPL3; 0x30 TSS.
# Gates lead from CPL3 to CPL0 and to sleep (bench_wait.rs); other processors come from a SIPI (bench_others.rs).
# CPL3, for a KVM may run only that on the processor and interpret the rest; ports by the bitmap, for IOPL may be lost.
# Macros are in long_mode.s. Without a gate an exception is a triple fault: the machine ends, and the host sees that the job is not done.
# Spec: Intel SDM volume 3, 8.7 "Task Management in 64-Bit Mode"; volume 1, 19.5.2 "I/O Permission Bit Map".

xen_note

.section .text
.code32
.globl start32
start32:
    movw $0x3f8, %dx
    movb $'~', %al
    outb %al, %dx
    cmpl $0, job_mode
    jne 2f
1:  hlt
    jmp 1b
2:  cli
    lgdtl gdt_pointer
enter:
    to_long_mode
protected:                          # another processor, from the trampoline
    xorl %ebx, %ebx
    jmp enter

.code64
long_mode:
    testl %ebx, %ebx
    jz other
    movl $tss, %eax                 # its address into its descriptor
    movw %ax, gdt + 0x32
    shrl $16, %eax
    movb %al, gdt + 0x34
    movb %ah, gdt + 0x37
    movw $104, tss + 102            # the bitmap begins behind the fixed part
    movb $0xff, tss + 104 + 8192
    movq $gate_stack_top, tss + 4   # where gates begin
    movl $0x30, %eax
    ltr %ax
    lidt idt_pointer
    movl %ebx, %edi
    movl $stack_top, %esp
    pushq $0x23
    pushq $stack_top - 4096 - 8     # as after a call
    pushq $2
    pushq $0x2b
    pushq $bench_main
    iretq

other:                              # a stack of 8 KiB by APIC id, from 5 MiB on; polls, so no TSS
    movl $1, %eax
    cpuid
    shrl $24, %ebx
    movl %ebx, %edi
    leal 1(%rbx), %esp
    shll $13, %esp
    addl $0x500000, %esp
    leaq -4096-8(%rsp), %rax
    pushq $0x23
    pushq %rax
    pushq $2
    pushq $0x2b
    pushq $bench_other
    iretq

.globl sleep_gate, wake_gate
sleep_gate:                         # bench_wait.rs: rdi the address of an index, si what it was
    cmpw %si, (%rdi)
    jne 1f
    sti
    hlt
    cli
1:  iretq
wake_gate:
    pushq %rax
    movl $0xfee000b0, %eax          # EOI
    movl $0, (%rax)
    popq %rax
    iretq

sipi_trampoline limit=0x3f
.code64

.section .data
.align 16
gdt:
    .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00af9b000000ffff, 0x00cff3000000ffff, 0x00affb000000ffff
    .quad 0x0000890000002068, 0     # TSS, limit 104 + 8192
gdt_pointer:
    .word 0x3f
    .long gdt
idt_pointer:
    .word 0x41 * 16 - 1
    .quad idt
.globl job, directories
.align 16
job:                                # the host writes it into the file (bench_job.rs)
    .ascii "AXVM bench job: "
job_mode:
    .long 0, 0
    .fill 64, 4, 0
identity_map rights=7

.section .bss
.align 4096
tss: .skip 12288
stack: .skip 16384
stack_top:
gate_stack: .skip 4096
gate_stack_top:
.globl idt
idt: .skip 0x41 * 16
