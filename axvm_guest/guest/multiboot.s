# A kernel with both Multiboot headers: it says on COM1 what its loader told it, and ends by debug exit at port 0xf4
# with 0x10 (exit code 33), or 0x11 (35) if it was not entered as the specifications say.
#
# Spec: GNU Multiboot Specification 0.6.96; Multiboot2 Specification 2.0.

.set COM1, 0x3f8
.set DEBUG_EXIT, 0xf4

.section .multiboot, "a"
.balign 8
header_2:
    .long 0xe85250d6, 0, header_2_end - header_2, 0x100000000 - (0xe85250d6 + (header_2_end - header_2))
    .short 1, 0         # information: memory sizes, memory map
    .long 16, 4, 6
    .short 0, 0
    .long 8
header_2_end:
header_1:
    .long 0x1badb002, 3, 0x100000000 - (0x1badb002 + 3)
    # For a loader that takes this as a flat file: bit 16 of the flags says so.
    .long header_1, image, image_end, bss_end, start

.text
.code32
.globl start
start:
    movl $stack, %esp
    movl %eax, %edi
    movl %ebx, %ebp
    pushfl
    popl %eax
    testl $(1 << 9 | 1 << 17), %eax         # interrupts off, no virtual 8086 mode
    jnz wrong
    movl %cr0, %eax
    andl $(1 << 31 | 1 << 0), %eax          # paging off, protection on
    cmpl $1, %eax
    jne wrong
    cmpl $0x2badb002, %edi
    je one
    cmpl $0x36d76289, %edi
    je two
wrong:
    movl $text_wrong, %esi
    call print
    movb $0x11, %al
    jmp end
good:
    movb $0x10, %al
end:
    outb %al, $DEBUG_EXIT
1:  hlt
    jmp 1b

one:
    movl $text_one, %esi
    call print
    movl 16(%ebp), %eax
    call command_line
    movl 64(%ebp), %eax
    call loader
    movl 8(%ebp), %eax
    call upper
    cmpl $0, 20(%ebp)
    je 1f
    movl 24(%ebp), %ebx
    movl 8(%ebx), %eax
    call module
1:  movl 48(%ebp), %ebx
    movl 44(%ebp), %ecx
    addl %ebx, %ecx
    xorl %edx, %edx
2:  cmpl $1, 20(%ebx)                       # available
    jne 3f
    addl 12(%ebx), %edx
3:  addl (%ebx), %ebx
    addl $4, %ebx
    cmpl %ecx, %ebx
    jb 2b
    call ram
    jmp good

two:
    movl $text_two, %esi
    call print
    leal 8(%ebp), %ebx
tag:
    movl (%ebx), %ecx
    leal 8(%ebx), %eax
    cmpl $0, %ecx
    je good
    cmpl $1, %ecx
    jne 1f
    call command_line
1:  cmpl $2, (%ebx)
    jne 1f
    call loader
1:  cmpl $3, (%ebx)
    jne 1f
    pushl %ebx
    leal 8(%ebx), %ebx
    leal 8(%ebx), %eax
    call module
    popl %ebx
1:  cmpl $4, (%ebx)
    jne 1f
    movl 12(%ebx), %eax
    call upper
1:  cmpl $6, (%ebx)
    jne 1f
    call map
1:  cmpl $15, (%ebx)
    jne 1f
    movl $text_rsdp, %esi
    call print
    leal 8(%ebx), %esi
    movl $8, %ecx
    call letters
    call line
1:  movl 4(%ebx), %eax
    addl $7, %eax
    andl $~7, %eax
    addl %eax, %ebx
    jmp tag

# The map of a tag at ebx: sums what is available.
map:
    movl 4(%ebx), %ecx
    addl %ebx, %ecx
    leal 16(%ebx), %esi
    xorl %edx, %edx
1:  cmpl $1, 16(%esi)
    jne 2f
    addl 8(%esi), %edx
2:  addl 8(%ebx), %esi
    cmpl %ecx, %esi
    jb 1b
    jmp ram

# Each says a line; the text, the number, or the module's ends at ebx.
command_line:
    movl $text_command_line, %esi
    jmp text
loader:
    movl $text_loader, %esi
text:
    call print
    movl %eax, %esi
    call print
    jmp line
upper:
    movl $text_upper, %esi
    call print
    movl %eax, %edx
    jmp number
ram:
    movl $text_ram, %esi
    call print
number:
    movl $8, %ecx
1:  roll $4, %edx
    movl %edx, %eax
    andl $15, %eax
    movb digits(%eax), %al
    call letter
    loop 1b
    jmp line
module:
    movl $text_module, %esi
    call print
    movl %eax, %esi
    call print
    movb $' ', %al
    call letter
    movl (%ebx), %esi
    movl 4(%ebx), %ecx
    subl %esi, %ecx
    call letters
line:
    movb $'\n', %al
letter:
    pushl %edx
    movw $COM1, %dx
    outb %al, %dx
    popl %edx
    ret
letters:
    lodsb
    call letter
    loop letters
    ret
print:
    pushl %eax
1:  lodsb
    testb %al, %al
    jz 2f
    call letter
    jmp 1b
2:  popl %eax
    ret

.section .rodata
digits: .ascii "0123456789abcdef"
text_one: .asciz "multiboot 1\n"
text_two: .asciz "multiboot 2\n"
text_wrong: .asciz "wrong state\n"
text_command_line: .asciz "command line: "
text_loader: .asciz "loader: "
text_upper: .asciz "upper KiB: "
text_ram: .asciz "RAM: "
text_module: .asciz "module: "
text_rsdp: .asciz "RSDP: "

.bss
    .skip 1024
stack:
