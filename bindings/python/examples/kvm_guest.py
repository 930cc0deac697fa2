"""A KVM guest moves to another process while it runs. Nothing but ioctls: a VMM in Python.

The guest counts in real mode. Each count goes into one of eight pages and is told by an OUT, which
leaves KVM_RUN, so that its thread can look whether it should pause. With --ring, KVM's dirty ring
tells of its writes, and otherwise the dirty bitmap.
"""

import ctypes
import fcntl
import mmap
import os
import socket
import struct
import sys
import threading
import time
from typing import Any, Optional

import brant

CREATE_VM, CREATE_VCPU, RUN, VCPU_MMAP_SIZE = 0xAE01, 0xAE41, 0xAE80, 0xAE04
SET_MEMORY, SET_TSS = 0x4020AE46, 0xAE47
REGS, SREGS = (0x8090AE81, 0x4090AE82, 144), (0x8138AE83, 0x4138AE84, 312)  # get, set, bytes
EXIT_IO, EXIT_RING_FULL = 2, 31
BYTES, CODE, COUNTER, PAGES = 16 << 20, 0x1000, 0x2000, 0x8000
PROGRAM = bytes.fromhex(
    "66 ff 07"  # next: inc dword [bx]     bx is COUNTER
    "66 8b 07"  # mov eax, [bx]
    "89 c7"  # mov di, ax
    "c1 e7 0c"  # shl di, 12
    "81 cf 00 80"  # or di, PAGES          one of eight pages
    "66 89 05"  # mov [di], eax
    "e6 10"  # out 0x10, al
    "eb ea"  # jmp next
)


class Machine:
    """One vCPU and its memory, and the operations of its migration."""

    def __init__(self, ring: bool = False) -> None:
        self.kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        self.vm = fcntl.ioctl(self.kvm, CREATE_VM, 0)
        if ring:
            brant.enable_kvm_ring(self.vm, 4096)  # before there is a slot or a vCPU
        self.memory = mmap.mmap(-1, BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        host = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        fcntl.ioctl(self.vm, SET_MEMORY, struct.pack("IIQQQ", 0, 0, 0, BYTES, host))
        self.vcpu = fcntl.ioctl(self.vm, CREATE_VCPU, 0)
        size = fcntl.ioctl(self.kvm, VCPU_MMAP_SIZE, 0)
        self.shared = mmap.mmap(self.vcpu, size)  # struct kvm_run
        self.thread: Optional[threading.Thread] = None
        self.tracker: Optional[brant.Tracker] = None
        self.paused = threading.Event()
        self.failed: Optional[BaseException] = None
        self.guest = brant.Guest(self)
        self.guest.add_block("ram", self.memory)
        self.guest.add_slot("ram", 0, slot=0)

    def boot(self) -> None:
        self.memory[CODE : CODE + len(PROGRAM)] = PROGRAM
        sregs = bytearray(self.get(SREGS))
        sregs[0:8], sregs[12:14] = bytes(8), bytes(2)  # cs: base 0, selector 0
        fcntl.ioctl(self.vcpu, SREGS[1], bytes(sregs))
        # rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8 to r15, rip, rflags
        fcntl.ioctl(self.vcpu, REGS[1], struct.pack("18Q", 0, COUNTER, *[0] * 14, CODE, 2))

    def get(self, what: Any) -> bytes:
        return fcntl.ioctl(self.vcpu, what[0], bytes(what[2]))

    def count(self) -> int:
        return int(struct.unpack_from("I", self.memory, COUNTER)[0])

    def wait_until(self, count: int) -> None:
        while self.count() < count:
            if self.failed:
                raise self.failed
            time.sleep(0.001)

    def vcpu_thread(self) -> None:
        try:
            while True:
                # Set once the guest shall pause: KVM_RUN finishes the OUT, and fails with EINTR.
                self.shared[1] = self.paused.is_set()
                fcntl.ioctl(self.vcpu, RUN, 0)
                reason = struct.unpack_from("I", self.shared, 8)[0]
                if reason == EXIT_RING_FULL and self.tracker:
                    self.tracker.rings.full(0)
                elif reason != EXIT_IO:
                    raise RuntimeError("the guest left for the reason %d" % reason)
        except InterruptedError:
            pass
        except BaseException as why:
            self.failed = why

    # What brant asks for.

    def run(self) -> None:
        self.paused.clear()
        self.thread = threading.Thread(target=self.vcpu_thread)
        self.thread.start()

    resume = run

    def pause(self) -> None:
        self.paused.set()
        if self.thread:
            self.thread.join()
        if self.failed:
            raise self.failed

    def save(self, saver: brant.Saver) -> None:
        saver.put("vcpu", self.get(REGS) + self.get(SREGS), version=1)

    def load(self, blob: brant.Blob) -> None:
        if (blob.name, blob.version, len(blob.data)) != ("vcpu", 1, REGS[2] + SREGS[2]):
            raise ValueError("expected one vCPU, not %s" % blob.name)
        fcntl.ioctl(self.vcpu, REGS[1], blob.data[: REGS[2]])
        fcntl.ioctl(self.vcpu, SREGS[1], blob.data[REGS[2] :])


def source(link: socket.socket, ring: bool) -> None:
    machine = Machine(ring)
    machine.boot()
    with brant.Tracker(machine.guest) as tracker:
        tracker.add_kvm(machine.vm)
        if ring:
            tracker.rings.add_vcpu(0, machine.vcpu)
        machine.tracker = tracker
        machine.run()
        machine.wait_until(1000)
        with brant.Outgoing(tracker) as outgoing:
            outgoing.start(link)
            outgoing.wait()
        log, _ = tracker.rings.info()
        if ring:
            print("here: the vCPU's ring gave %s pages" % ("some" if log.harvested else "no"))
    print("here: paused at %d for good" % machine.count(), flush=True)


def destination(link: socket.socket) -> None:
    machine = Machine()
    with brant.Incoming(machine.guest) as incoming:
        incoming.start(link)
        incoming.wait()
        first = machine.count()
    machine.wait_until(first + 1000)
    machine.pause()
    count = machine.count()
    pages = sorted(struct.unpack_from("I", machine.memory, PAGES + 4096 * n)[0] for n in range(8))
    whole = pages == list(range(count - 7, count + 1))
    print("there: counts on, and its pages are", "whole" if whole else "torn: %s" % pages)


if __name__ == "__main__":
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        sys.exit("this example needs /dev/kvm")
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        destination(theirs)
    else:
        source(ours, "--ring" in sys.argv)
        os.wait()
