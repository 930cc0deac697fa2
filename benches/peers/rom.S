/*
 * The ROM of a guest that writes memory at a set rate, as QEMU's BIOS and as code in the memory of
 * benches/peers/busy.c. Linked at 0xf0000, where a BIOS of 64 KiB is seen below 1 MiB.
 *
 * The numbers at its beginning are written by scripts/bench-peers. The guest goes round the pages from
 * `first` to `end`, adds one to a word of each, and counts batches of 16 pages in memory at COUNTER. A
 * batch takes `ticks` of the time-stamp counter at least. A guest that was stopped for a while does not
 * catch up.
 */
        .set    COUNTER, 0x1000

        .text
        .globl  _start
_start:
first:  .long   0x100000
end:    .long   0x200000
ticks:  .long   0

        .balign 8
gdt:    .quad   0
        .quad   0x00cf9b000000ffff      /* 8: code, 32 bits, all memory */
        .quad   0x00cf93000000ffff      /* 16: data */
gdtr:   .word   . - gdt - 1
        .long   gdt

        .code16
entry:  cli
        lgdtl   %cs:(gdtr - _start)
        movl    %cr0, %eax
        orl     $1, %eax
        movl    %eax, %cr0
        ljmpl   $8, $flat

        .code32
flat:   movl    $16, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    first, %edi
again:  rdtsc
        movl    %eax, %ebp
        .set    page, 0
        .rept   16
        incl    page(%edi)
        .set    page, page + 4096
        .endr
        addl    $0x10000, %edi
        cmpl    end, %edi
        jb      counts
        movl    first, %edi
counts: incl    COUNTER
        cmpl    $0, ticks
        je      again
waits:  rdtsc
        subl    %ebp, %eax
        cmpl    ticks, %eax
        jb      waits
        jmp     again

        .org    0xfff0
        .code16
        ljmpw   $0xf000, $(entry - _start)
        .balign 16
