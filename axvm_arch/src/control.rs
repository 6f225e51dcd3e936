//! The bits of control, flag and debug registers, with their names and what each means.
//!
//! ```text
//!   CR0   PE ... WP ... PG      protection, paging          EFER    SCE LME LMA NXE SVME
//!   CR3   PWT PCD | base        where page tables begin     RFLAGS  CF ... IF ... IOPL ... VM
//!   CR4   VME ... PAE ... LA57  extensions                  DR6, DR7, error code of #PF
//! ```
//!
//! Spec: Intel SDM volume 3, 2.5 "Control Registers", 2.2.1 "Extended Feature Enable Register", 4.7 "Page-Fault
//! Exceptions", 18.2 "Debug Registers"; volume 1, 3.4.3 "EFLAGS Register"; AMD APM volume 2, 3.1.
//! Left out: CR8 and XCR0, which have neither rules for an entry nor a part in a crash.

use crate::bits::bits;

bits! {
    /// CR0: protection, paging and the coprocessor (SDM 3, 2.5).
    cr0 {
        PE = 1 << 0, "protection enable: segments are descriptors, not paragraphs";
        MP = 1 << 1, "monitor coprocessor: WAIT obeys TS";
        EM = 1 << 2, "emulation: no FPU, its instructions are #UD or #NM";
        TS = 1 << 3, "task switched: the next FPU instruction is #NM";
        ET = 1 << 4, "extension type; fixed to 1 on every CPU since the 486";
        NE = 1 << 5, "numeric error: FPU faults are #MF, not an interrupt";
        WP = 1 << 16, "write protect: the kernel, too, cannot write to read-only pages";
        AM = 1 << 18, "alignment mask: RFLAGS.AC makes #AC at CPL 3";
        NW = 1 << 29, "not write-through; only valid with CD";
        CD = 1 << 30, "cache disable";
        PG = 1 << 31, "paging: linear addresses go through page tables";
    }
}

bits! {
    /// CR3, beside the address of the first table (SDM 3, 4.5).
    cr3 {
        PWT = 1 << 3, "the first table is read write-through; with PCIDs, part of the PCID";
        PCD = 1 << 4, "the first table is read uncached; with PCIDs, part of the PCID";
        LAM_U57 = 1 << 61, "bits 62:57 of user addresses are the program's own";
        LAM_U48 = 1 << 62, "bits 62:48 of user addresses are the program's own";
    }
}

bits! {
    /// CR4: extensions (SDM 3, 2.5).
    cr4 {
        VME = 1 << 0, "virtual-8086 mode extensions";
        PVI = 1 << 1, "protected-mode virtual interrupts";
        TSD = 1 << 2, "RDTSC at CPL 3 is #GP";
        DE = 1 << 3, "debug extensions: DR4 and DR5 are #UD";
        PSE = 1 << 4, "4 MiB pages in 32-bit paging";
        PAE = 1 << 5, "page table entries of 64 bits; long mode needs it";
        MCE = 1 << 6, "machine checks are #MC, not a shutdown";
        PGE = 1 << 7, "global pages stay in the TLB when CR3 changes";
        PCE = 1 << 8, "RDPMC at CPL 3";
        OSFXSR = 1 << 9, "SSE: without it, its instructions are #UD";
        OSXMMEXCPT = 1 << 10, "SSE faults are #XM, not #UD";
        UMIP = 1 << 11, "SGDT, SIDT, SLDT, SMSW and STR at CPL 3 are #GP";
        LA57 = 1 << 12, "5-level paging: linear addresses of 57 bits";
        VMXE = 1 << 13, "VMX: this processor may run guests; cleared only outside of VMX operation";
        SMXE = 1 << 14, "safer mode extensions (GETSEC)";
        FSGSBASE = 1 << 16, "RDFSBASE and the like: without it, they are #UD";
        PCIDE = 1 << 17, "process-context identifiers in CR3; only in long mode";
        OSXSAVE = 1 << 18, "XSAVE, and AVX after it: without it, they are #UD";
        KL = 1 << 19, "Key Locker";
        SMEP = 1 << 20, "the kernel cannot execute user pages";
        SMAP = 1 << 21, "the kernel cannot access user pages while RFLAGS.AC is clear";
        PKE = 1 << 22, "protection keys for user pages";
        CET = 1 << 23, "control-flow enforcement; needs CR0.WP";
        PKS = 1 << 24, "protection keys for supervisor pages";
        UINTR = 1 << 25, "user interrupts";
        LAM_SUP = 1 << 28, "upper bits of kernel addresses are the kernel's own";
        FRED = 1 << 32, "events by FRED, not by the IDT";
    }
}

bits! {
    /// IA32_EFER: long mode and its companions (SDM 3, 2.2.1; AMD APM 2, 3.1.7).
    efer {
        SCE = 1 << 0, "SYSCALL and SYSRET: without it, they are #UD";
        LME = 1 << 8, "long mode enable: long mode begins with paging";
        LMA = 1 << 10, "long mode active; the processor sets it from LME and CR0.PG";
        NXE = 1 << 11, "bit 63 of a page table entry forbids execution; without it, it is reserved";
        SVME = 1 << 12, "SVM enable: without it, VMRUN is no instruction";
        LMSLE = 1 << 13, "segment limits in long mode (AMD)";
        FFXSR = 1 << 14, "fast FXSAVE (AMD)";
        TCE = 1 << 15, "translation cache extension (AMD)";
        MCOMMIT = 1 << 17, "MCOMMIT (AMD)";
        INTWB = 1 << 18, "WBINVD can be interrupted (AMD)";
        UAIE = 1 << 20, "upper address ignore (AMD)";
        AIBRSE = 1 << 21, "automatic IBRS (AMD)";
    }
}

bits! {
    /// RFLAGS (SDM 1, 3.4.3); bit 1 is always one.
    rflags {
        CF = 1 << 0, "carry";
        PF = 1 << 2, "parity: even in the lowest byte";
        AF = 1 << 4, "carry out of bit 3";
        ZF = 1 << 6, "zero";
        SF = 1 << 7, "sign";
        TF = 1 << 8, "trap: #DB after each instruction";
        IF = 1 << 9, "interrupts are taken";
        DF = 1 << 10, "string instructions go downwards";
        OF = 1 << 11, "overflow";
        IOPL = 3 << 12, "the highest CPL that may use I/O ports and CLI";
        NT = 1 << 14, "nested task: IRET returns to another task";
        RF = 1 << 16, "resume: no instruction breakpoint at the next instruction";
        VM = 1 << 17, "virtual-8086 mode";
        AC = 1 << 18, "alignment check at CPL 3; with SMAP, the kernel may access user pages";
        VIF = 1 << 19, "virtual interrupt flag";
        VIP = 1 << 20, "virtual interrupt pending";
        ID = 1 << 21, "it can be changed where there is CPUID";
    }
}

bits! {
    /// DR6: what a #DB was for (SDM 3, 18.2.3).
    dr6 {
        B0 = 1 << 0, "breakpoint 0 was hit";
        B1 = 1 << 1, "breakpoint 1 was hit";
        B2 = 1 << 2, "breakpoint 2 was hit";
        B3 = 1 << 3, "breakpoint 3 was hit";
        BLD = 1 << 11, "no bus lock was detected (clear says that one was)";
        BD = 1 << 13, "the next instruction accesses a debug register";
        BS = 1 << 14, "single step";
        BT = 1 << 15, "task switch";
        RTM = 1 << 16, "not inside of a transaction (clear says inside)";
    }
}

bits! {
    /// DR7: which breakpoints are on, and for what (SDM 3, 18.2.4).
    dr7 {
        L0 = 1 << 0, "breakpoint 0 is on, for this task";
        G0 = 1 << 1, "breakpoint 0 is on";
        L1 = 1 << 2, "breakpoint 1 is on, for this task";
        G1 = 1 << 3, "breakpoint 1 is on";
        L2 = 1 << 4, "breakpoint 2 is on, for this task";
        G2 = 1 << 5, "breakpoint 2 is on";
        L3 = 1 << 6, "breakpoint 3 is on, for this task";
        G3 = 1 << 7, "breakpoint 3 is on";
        LE = 1 << 8, "exact data breakpoints, for this task (386)";
        GE = 1 << 9, "exact data breakpoints (386)";
        FIXED = 1 << 10, "always one";
        RTM = 1 << 11, "breakpoints inside of transactions";
        GD = 1 << 13, "an access to a debug register is #DB";
        RW0 = 3 << 16, "breakpoint 0: 0 execution, 1 write, 2 I/O, 3 read or write";
        LEN0 = 3 << 18, "breakpoint 0: length, less one";
        RW1 = 3 << 20, "breakpoint 1: 0 execution, 1 write, 2 I/O, 3 read or write";
        LEN1 = 3 << 22, "breakpoint 1: length, less one";
        RW2 = 3 << 24, "breakpoint 2: 0 execution, 1 write, 2 I/O, 3 read or write";
        LEN2 = 3 << 26, "breakpoint 2: length, less one";
        RW3 = 3 << 28, "breakpoint 3: 0 execution, 1 write, 2 I/O, 3 read or write";
        LEN3 = 3 << 30, "breakpoint 3: length, less one";
    }
}

bits! {
    /// The error code of a page fault (SDM 3, 4.7).
    page_fault {
        P = 1 << 0, "the page is present: its rights were in the way";
        WR = 1 << 1, "a write";
        US = 1 << 2, "at CPL 3";
        RSVD = 1 << 3, "a reserved bit is set in an entry of the page tables";
        ID = 1 << 4, "an instruction fetch";
        PK = 1 << 5, "a protection key was in the way";
        SS = 1 << 6, "an access to a shadow stack";
        HLAT = 1 << 7, "in the walk that the hypervisor manages";
        SGX = 1 << 15, "a rule of SGX was in the way";
    }
}
