# What both guests have of their way to long mode, as macros; each has a GDT of its own behind `gdt_pointer`.
#
#   xen_note          the note by which a loader finds start32 (PVH)
#   to_long_mode      segments, CR4, CR3, EFER, CR0 --ljmp--> long_mode
#   sipi_trampoline   16-bit code, to be copied to a page below 1 MiB: gdt --ljmp--> protected
#   identity_map      pml4 --> pdpt --> 4 directories of 512 pages of 2 MiB
#
# Spec: Intel SDM volume 3, 11.8.5 "Initializing IA-32e Mode"; Xen, docs/misc/pvh.pandoc.

.macro xen_note
.section .note.Xen, "a", @note
    .align 4
    .long 4, 4, 18                  # name length, value length, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long start32
.endm

.macro to_long_mode
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %fs
    movl %eax, %gs
    movl %eax, %ss
    movl $0x620, %eax               # PAE, OSFXSR, OSXMMEXCPT
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx          # EFER
    rdmsr
    orl $0x100, %eax                # LME
    wrmsr
    movl %cr0, %eax
    andl $0x9ffffffb, %eax          # caches on (CD, NW clear), no x87 emulation (EM clear)
    orl $0x80000003, %eax           # PG, MP, PE
    movl %eax, %cr0
    ljmp $0x18, $long_mode
.endm

# `limit`: of the GDT.
.macro sipi_trampoline limit
.section .rodata
.globl trampoline, trampoline_end
.code16
trampoline:
    cli
    movw %cs, %ax
    movw %ax, %ds
    lgdtl (trampoline_gdt - trampoline)
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x08, $protected
trampoline_gdt:
    .word \limit
    .long gdt
trampoline_end:
.endm

# `rights`: 3 present and writable, 7 for CPL3, too; `fifth`: the entry for the GiB behind the four.
.macro identity_map rights, fifth=0
.align 4096
pml4:
    .quad pdpt + \rights
    .fill 511, 8, 0
pdpt:
    .quad directories + \rights, directories + 0x1000 + \rights, directories + 0x2000 + \rights
    .quad directories + 0x3000 + \rights, \fifth
    .fill 507, 8, 0
directories:
    .set page, 0
    .rept 2048
    .quad (page << 21) + 0x80 + \rights
    .set page, page + 1
    .endr
.endm
