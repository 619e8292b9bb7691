# Everything that runs in ring 0. On a KVM that emulates ring 0 each instruction here costs about
# a microsecond and only simple ones exist, so this is short and the rest runs in ring 3.

# XEN_ELFNOTE_PHYS32_ENTRY: where a PVH loader enters, in 32-bit mode with paging off.
.section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18
    .asciz "Xen"
    .quad pvh_start

.section .text.boot, "ax"
.code32
.global pvh_start
pvh_start:
    mov edx, 0x3f8                  # the first byte, before anything else: boot time is measured to here
    mov al, 0x50
    out dx, al
    cld
    mov dword ptr [start_info], ebx
    mov al, 0xff                    # the PIC may start unmasked
    out 0x21, al
    out 0xa1, al
    xor ebp, ebp                    # vCPU 0

to_long_mode:                       # ebp: index of this vCPU
    mov eax, offset boot_pml4
    mov cr3, eax
    mov eax, cr4
    or eax, 0x620                   # PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov ecx, 0xc0000080             # EFER.LME
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, cr0
    and eax, 0x9ffffff3             # EM, TS off; caches on: a vCPU starts with CD, NW
    or eax, 0x80010023              # PG, WP, NE, MP, PE
    mov cr0, eax
    lgdt [gdt_pointer]
    .byte 0xea                      # far jump
    .long long_mode
    .word 0x08

# A vCPU that a SIPI starts: copied to TRAMPOLINE_GPA, runs in real mode.
.code16
.global trampoline_start
trampoline_start:
    cli
    mov ax, cs
    mov ds, ax
    .byte 0x66, 0x0f, 0x01, 0x16    # lgdt with a 32-bit base, from ds:disp16
    .word trampoline_gdt_pointer - trampoline_start
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xea                # far jump
    .long trampoline_32
    .word 0x18
    .balign 4
trampoline_gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
.global trampoline_end
trampoline_end:

.code32
trampoline_32:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov ebp, dword ptr [starting_vcpu]
    jmp to_long_mode

.code64
long_mode:
    xor eax, eax
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov eax, ebp                    # the stack for ring 0
    shl eax, 10
    lea rsp, [rax + ring0_stacks + 1024]
    mov edx, ebp                    # the TSS, and its descriptor: GDT 0x30 + 16 * index
    shl edx, 7
    lea edx, [rdx + tss]
    mov qword ptr [rdx + 4], rsp
    mov word ptr [rdx + 102], 104
    mov ecx, ebp
    shl ecx, 4
    mov word ptr [rcx + gdt + 0x30], 103
    mov word ptr [rcx + gdt + 0x32], dx
    mov eax, edx
    shr eax, 16
    mov byte ptr [rcx + gdt + 0x34], al
    mov byte ptr [rcx + gdt + 0x35], 0x89
    mov byte ptr [rcx + gdt + 0x37], ah
    lea eax, [rcx + 0x30]
    ltr ax
    lidt [idt_pointer]
    mov eax, ebp                    # the stack for ring 3, aligned as after a call
    inc eax
    shl eax, 14
    lea rax, [rax + ring3_stacks - 8]
    push 0x23
    push rax
    push 0x202
    push 0x2b
    push offset ring3_entry
    mov edi, ebp
    xor ebp, ebp
    iretq

# Ring 3 asks ring 0 for a service by the #UD of this one instruction:
# ring0_call(rdi: which, rsi, rdx) -> rax, as a C function.
.global ring0_call
ring0_call:
    ud2
    ret

.global trap_ud
trap_ud:
    cmp qword ptr [rsp], offset ring0_call
    jne trap_6
    add qword ptr [rsp], 2
    cmp edi, 0
    je service_cpuid
    cmp edi, 1
    je service_wrmsr
    cmp edi, 2
    je service_write
    cmp edi, 3
    je service_stop
    cmp edi, 4
    je service_end
    iretq

service_cpuid:                      # rsi: leaf, rdx: four words for the answer
    push rbx
    mov r8, rdx
    mov eax, esi
    xor ecx, ecx
    cpuid
    mov dword ptr [r8], eax
    mov dword ptr [r8 + 4], ebx
    mov dword ptr [r8 + 8], ecx
    mov dword ptr [r8 + 12], edx
    pop rbx
    iretq

service_wrmsr:                      # rsi: register, rdx: value
    mov ecx, esi
    mov eax, edx
    shr rdx, 32
    wrmsr
    iretq

service_write:                      # rsi: bytes, rdx: how many; to the serial port
    mov rcx, rdx
2:  test rcx, rcx
    jz 5f
    mov edx, 0x3fd
    mov r8d, 1000                   # turns to wait for a full transmitter before a byte is risked
3:  in al, dx
    test al, 0x20
    jnz 4f
    dec r8d
    jnz 3b
4:  mov edx, 0x3f8
    mov al, byte ptr [rsi]
    out dx, al
    inc rsi
    dec rcx
    jmp 2b
5:  iretq

service_stop:
    cli
    hlt
    jmp service_stop

service_end:                        # an empty IDT and a fault: the machine shuts down
    lidt [empty_idt_pointer]
    ud2

# Any other exception: go on in ring 3, in fault_entry(vector, error code, rip, cr2).
# One stub each vector, 16 bytes apart; these vectors push an error code: 8, 10 to 14, 17, 21.
.balign 16
.global trap_stubs
trap_stubs:
.irp vector, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    .balign 16
trap_\vector:
    .if 0x00227d00 & (1 << \vector) == 0
    push 0
    .endif
    push \vector
    jmp trap_fatal
.endr

trap_fatal:
    pop rdi
    pop rsi
    mov rdx, qword ptr [rsp]
    mov rcx, cr2
    mov qword ptr [rsp], offset fault_entry
    mov qword ptr [rsp + 8], 0x2b
    mov qword ptr [rsp + 32], 0x23
    and qword ptr [rsp + 24], -16
    sub qword ptr [rsp + 24], 264   # past the red zone, aligned as after a call
    iretq

# The local timer.
.global trap_tick
trap_tick:
    push rax
    push rcx
    str eax                         # 0x30 + 16 * index of this vCPU
    movzx eax, ax
    sub eax, 0x30
    shr eax, 1
    mov rcx, qword ptr [rax + tick_counters]
    inc qword ptr [rcx]
    mov eax, 0xfee000b0             # EOI
    mov dword ptr [rax], 0
    pop rcx
    pop rax
    iretq

.global trap_ignore
trap_ignore:
    iretq

.section .data.boot, "aw"
.balign 4096
.global boot_pml4
boot_pml4:
    .quad pdpt + 7
    .fill 511, 8, 0
.global pdpt
pdpt:
    .quad boot_pd + 7
    .fill 511, 8, 0
boot_pd:                            # the first GiB, in 2 MiB pages, open to ring 3
    .set page, 0x87
    .rept 512
    .quad page
    .set page, page + 0x200000
    .endr
.balign 16
gdt:
    .quad 0
    .quad 0x00af9b000000ffff        # 0x08: ring 0 code, 64-bit
    .quad 0x00cf93000000ffff        # 0x10: ring 0 data
    .quad 0x00cf9b000000ffff        # 0x18: ring 0 code, 32-bit
    .quad 0x00cff3000000ffff        # 0x20: ring 3 data
    .quad 0x00affb000000ffff        # 0x28: ring 3 code, 64-bit
    .fill 2 * 64, 8, 0              # 0x30: a TSS each vCPU
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
idt_pointer:
    .word 16 * 256 - 1
    .quad idt
empty_idt_pointer:
    .word 0
    .quad 0
.global start_info
.balign 8
start_info:
    .quad 0
.global starting_vcpu
starting_vcpu:
    .quad 0

.section .bss.boot, "aw", @nobits
.balign 4096
.global idt
idt:
    .skip 16 * 256
tss:
    .skip 128 * 64
.global tick_counters
tick_counters:
    .skip 8 * 64
ring0_stacks:
    .skip 1024 * 64
ring3_stacks:
    .skip 16384 * 64
