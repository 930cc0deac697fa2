/* The guest program's image as bytes of the VMM: mv_guest_image .. mv_guest_image_end. Found through -Wa,-I,<dir>. */
	.section .rodata
	.balign 16
	.globl mv_guest_image
	.globl mv_guest_image_end
mv_guest_image:
	.incbin "guest.bin"
mv_guest_image_end:
	.section .note.GNU-stack, "", @progbits
