# Builds, tests and installs brant for users of its C interface. Rust users
# need nothing but cargo. `make help` lists the targets.
#
# Cargo builds the crate once, in release, and every other target works with
# that. The shared library that is shipped is not cargo's: it is linked here from
# the static library, because only then does the linker accept a version script
# (rustc passes one of its own), so that brant_* symbols alone leave it, each with
# a version. What comes from C goes to target/c; the programs a user runs, to build.

SHELL   := /bin/bash
CC      ?= cc
CFLAGS  ?= -O2 -g
CARGO   ?= cargo
OBJCOPY ?= objcopy
STRIP   ?= strip
INSTALL ?= install
PREFIX  ?= /usr/local
INCLUDEDIR ?= $(PREFIX)/include
LIBDIR  ?= $(PREFIX)/lib
MANDIR  ?= $(PREFIX)/share/man
DOCDIR  ?= $(PREFIX)/share/doc/brant
DEMO_FLAGS ?=

# rustup puts cargo where a fresh login shell, but not always make, finds it.
export PATH := $(PATH):$(HOME)/.cargo/bin

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
SONAME  := libbrant.so.$(firstword $(subst ., ,$(VERSION)))
DEBUG   = $(C)/libbrant.so.$(VERSION).debug
CARGO_OUT := $(or $(CARGO_TARGET_DIR),target)/release
# Two compilers keep apart by `make CC=clang C=target/clang BUILD=target/clang/build`; with CARGO=true
# the crate stays as it is.
C       := target/c
BUILD   := build
REFERENCE := $(C)/reference
MAP     := src/capi/brant.map
# What rustc names for --print native-static-libs on Linux with glibc, less -lgcc_s: the
# compiler adds that to a program by itself, or -lgcc_eh where everything is static.
PRIVATE := -lutil -lrt -lpthread -lm -ldl -lc
space   := $(subst ,, )
# From a program's directory to that of the shared library.
rpath   = '-Wl,-rpath,$$ORIGIN/$(shell realpath -m --relative-to=$(dir $@) $(C))'

WARN    := -Wall -Wextra
C_FLAGS  = -std=gnu11 $(WARN) -Iinclude -Iexamples/minivmm -MMD -MP $(CPPFLAGS) $(CFLAGS)

MINIVMM_SOURCES := $(wildcard examples/minivmm/*.c)
MINIVMM_OBJECTS := $(MINIVMM_SOURCES:examples/%.c=$(C)/%.o)
ifneq ($(wildcard examples/minivmm/guest/guest.c),)
MINIVMM_OBJECTS += $(C)/minivmm/guest/blob.o
endif
# The machine alone, which knows nothing of migration, as an archive: a test
# takes from it what it uses.
MACHINE_OBJECTS := $(filter %/machine.o %/state.o %/kvm.o %/process.o %/digest.o %/blob.o,$(MINIVMM_OBJECTS))
MACHINE := $(C)/libmachine.a
MINIVMM := $(if $(wildcard examples/minivmm/main.c),$(BUILD)/minivmm)
SERIALVMM_OBJECTS := $(patsubst examples/%.c,$(C)/%.o,$(wildcard examples/serialvmm/*.c))
SERIALVMM := $(BUILD)/serialvmm

TEST_SOURCES  := $(wildcard c-tests/*.c)
TEST_PROGRAMS := $(TEST_SOURCES:c-tests/%.c=$(C)/tests/%)
# Written from the header, so that no function goes without.
TEST_PROGRAMS += $(C)/tests/manners

.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: all lib pc examples c-tests demo demo-all test test-faults test-features test-downtime test-loom test-stock-kvm test-asan test-tsan test-valgrind test-minimum lint bench bench-quick bench-peers deps header map abi abi-baseline reference deb install install-debug uninstall clean help FORCE
.DEFAULT_GOAL := all

## all: the libraries, brant.pc and the examples
all: lib pc examples

## lib: libbrant.a and the shared library with versioned symbols, in target/c
lib: $(C)/libbrant.a $(C)/libbrant.so

## pc: brant.pc for PREFIX, and what CMake's find_package reads, in target/c
pc: $(C)/brant.pc $(C)/cmake/brantConfig.cmake $(C)/cmake/brantConfigVersion.cmake

## reference: a manual page and an HTML page for each function and type, from the header, in target/c/reference
reference: $(REFERENCE)/made

## site: docs/ as a site, with the reference, in target/site/book (the first time cargo builds mdbook: some minutes)
.PHONY: site
site: reference
	@scripts/site

## deb: Debian packages libbrant0 and libbrant-dev, in target/deb (DEB_FLAGS go to dpkg-deb)
deb: lib | deps
	@scripts/deb $(DEB_FLAGS)

## examples: the example VMMs, build/minivmm and build/serialvmm
examples: $(MINIVMM) $(SERIALVMM)

## demo: migrate a running guest between two example VMMs (DEMO_FLAGS go to it)
demo: $(BUILD)/minivmm
	$(BUILD)/minivmm demo $(DEMO_FLAGS)

## demo-all: each way in which a guest moves: precopy, rings, a device, postcopy, hand-over, images (WAYS="postcopy image")
WAYS ?=
demo-all: $(BUILD)/minivmm
	@scripts/demo-all $(WAYS)

## demo-linux: a Linux guest moves ten times between two processes, in an emulated machine (two minutes)
.PHONY: demo-linux
demo-linux: | deps
	@scripts/test-stock-kvm --long --verbose linux

## test: everything that CI runs; the last line counts passed, failed, skipped
test: | deps
	@scripts/test

## lint: the linters alone (a part of make test)
lint: | deps
	@scripts/test --only lint

## test-loom: the lock-free parts alone, model-checked (a part of make test)
test-loom: | deps
	@scripts/test --only loom

## test-faults: whole migrations with each system call failing once (make test: a selection; FAULTS=TEXT: those named so)
FAULTS ?= all
test-faults: | deps
	BRANT_FAULTS='$(FAULTS)' cargo test --release --locked --lib migrate::tests::faults -- --nocapture

## test-features: the library with nothing but the C face: what it lacks is BRANT_E_UNSUPPORTED (make test: it compiles)
test-features: | deps
	cargo test --locked --no-default-features --features capi --test features

## test-downtime: 100 switchovers of KVM guests for each limit, over links with buffers and delays (make test: a few)
test-downtime: | deps
	BRANT_SWITCHOVERS=100 cargo test --release --locked --test all converge::kept:: -- --nocapture

## test-cuts: 500 cuts of lanes at random during postcopies, with recovery (make test: a few; BRANT_SEED=N repeats a run's choices)
.PHONY: test-cuts
test-cuts: | deps
	BRANT_CUTS=500 cargo test --release --locked --test all postcopy::cuts:: -- --nocapture

## test-stock-kvm: the C tests on a stock kernel's KVM, in an emulated machine (make test: some of them)
test-stock-kvm: | deps
	@scripts/test-stock-kvm

## test-asan: C tests and the Rust in them under AddressSanitizer, the C under UBSan too (not in make test; PROGRAMS=...)
test-asan: | deps
	@scripts/test-instrumented asan $(PROGRAMS)

## test-tsan: C tests and the Rust in them under ThreadSanitizer (needs rust-src; not in make test; PROGRAMS=...)
test-tsan: | deps
	@scripts/test-instrumented tsan $(PROGRAMS)

## test-valgrind: C tests that need no KVM under Valgrind (not in make test; PROGRAMS=...)
test-valgrind: | deps
	@scripts/test-instrumented valgrind $(PROGRAMS)

## test-python-valgrind: tests of the Python package under Valgrind (not in make test; FILES=test_x.py)
.PHONY: test-python-valgrind
test-python-valgrind: | deps
	@scripts/test-python-valgrind $(FILES)

## test-minimum: the oldest Rust and the oldest Python that are promised (not in make test)
test-minimum: | deps
	@scripts/test-minimum

## c-tests: build the C test programs, in target/c/tests
c-tests: $(TEST_PROGRAMS)

## bench: measure the figures (some: make bench ONLY=stream) into target/bench/results.json (STRICT=1: fails where a goal is missed)
bench: | deps
	@scripts/bench --only '$(ONLY)' $(if $(STRICT),--strict)

## bench-quick: the figures that answer "is it fast?", in two minutes once it is built
bench-quick: | deps
	@scripts/bench --quick $(if $(STRICT),--strict)

## bench-peers: the same memory migrated by QEMU and by brant in turn (installed, or unpacked from Debian's package)
bench-peers: | deps
	@scripts/bench-peers

## deps: check for the tools needed; root on Debian: install the missing (BRANT_NO_INSTALL=1: only check)
deps: $(C)/deps.stamp

$(C)/deps.stamp: scripts/deps Cargo.toml
	@scripts/deps
	@mkdir -p $(@D) && touch $@

## header: regenerate include/brant.h from src/capi, and Python's declarations from it
header: | deps
	@scripts/header

## map: append functions that are new in include/brant.h to the version map
map: | deps
	@scripts/map

## abi: append what is new in include/brant.h to the ABI record, and to the list in docs/abi.md
abi: | deps
	@scripts/abi-record

## abi-baseline: make today's header the one that later headers are compared with (at a release)
abi-baseline:
	cp include/brant.h src/capi/brant.map src/capi/baseline/

# --- the crate ---------------------------------------------------------------
# Cargo decides whether there is anything to do; make looks at the time of the
# file afterwards, so nothing is relinked when it did not change.
$(CARGO_OUT)/libbrant.a: FORCE | deps
	$(CARGO) build --release --locked

$(C)/libbrant.a: $(CARGO_OUT)/libbrant.a
	@mkdir -p $(@D)
	cp -p $< $@.new && mv $@.new $@

# The library as linked, with debug symbols: only the two files made from it are used.
$(C)/unstripped/libbrant.so.$(VERSION): $(C)/libbrant.a $(MAP)
	@mkdir -p $(@D)
	$(CC) -shared -o $@ -Wl,--whole-archive $< -Wl,--no-whole-archive \
	    -Wl,--gc-sections -Wl,--version-script=$(MAP) -Wl,--no-undefined-version \
	    -Wl,-soname,$(SONAME) -Wl,-z,defs,-z,relro,-z,now,-z,noexecstack -Wl,--build-id \
	    $(LDFLAGS) -Wl,--as-needed -lgcc_s $(PRIVATE)

# Debuggers find the symbols by the file's name, kept in the library, or by the build ID.
$(DEBUG): $(C)/unstripped/libbrant.so.$(VERSION)
	$(OBJCOPY) --only-keep-debug $< $@.new && mv $@.new $@

$(C)/libbrant.so.$(VERSION): $(C)/unstripped/libbrant.so.$(VERSION) $(DEBUG)
	$(STRIP) --strip-unneeded -o $@.new $<
	$(OBJCOPY) --add-gnu-debuglink=$(DEBUG) $@.new && mv $@.new $@

$(C)/$(SONAME): $(C)/libbrant.so.$(VERSION)
	ln -sf $(<F) $@

$(C)/libbrant.so: $(C)/$(SONAME)
	ln -sf $(<F) $@

$(C)/brant.pc: brant.pc.in FORCE
	@mkdir -p $(@D)
	@sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@VERSION@|$(VERSION)|' -e 's|@PRIVATE@|$(PRIVATE)|' \
	    -e 's|@LIBDIR@|$(patsubst $(PREFIX)/%,$${exec_prefix}/%,$(LIBDIR))|' \
	    -e 's|@INCLUDEDIR@|$(patsubst $(PREFIX)/%,$${prefix}/%,$(INCLUDEDIR))|' $< > $@

# find_package is told where the header is from where its own files are.
$(C)/cmake/%.cmake: cmake/%.cmake.in FORCE
	@mkdir -p $(@D)
	@sed -e 's|@VERSION@|$(VERSION)|' -e 's|@MAJOR@|$(firstword $(subst ., ,$(VERSION)))|' -e 's|@SONAME@|$(SONAME)|' \
	    -e 's|@PRIVATE@|$(subst $(space),;,$(PRIVATE))|' \
	    -e 's|@INCLUDE_FROM_LIB@|$(shell realpath -ms --relative-to='$(LIBDIR)' '$(INCLUDEDIR)')|' $< > $@

$(REFERENCE)/made: include/brant.h scripts/reference scripts/doc_comments.py scripts/abi.py | deps
	@scripts/reference --man $(REFERENCE)/man3 --html $(REFERENCE)/html
	@touch $@

# --- the example VMM ---------------------------------------------------------
$(C)/minivmm/%.o: examples/minivmm/%.c | deps
	@mkdir -p $(@D)
	$(CC) $(C_FLAGS) -c $< -o $@

# The guest program is freestanding; its image goes into the VMM as bytes.
GUEST_FLAGS := -std=gnu11 -O2 $(WARN) -Werror -ffreestanding -fno-stack-protector \
    -fcf-protection=none -mno-red-zone -mgeneral-regs-only -fno-pic \
    -fno-asynchronous-unwind-tables
# No loop becomes a call of memcpy or memset: there is none. clang keeps to that with
# -ffreestanding, gcc has a flag of its own.
GUEST_FLAGS += $(shell $(CC) -Werror -fno-tree-loop-distribute-patterns -x c -c /dev/null \
    -o /dev/null 2>/dev/null && echo -fno-tree-loop-distribute-patterns)

$(C)/minivmm/guest/guest.elf: examples/minivmm/guest/guest.c examples/minivmm/guest/guest.ld | deps
	@mkdir -p $(@D)
	$(CC) $(GUEST_FLAGS) -MMD -MP -MF $(@D)/guest.d -MT $@ -nostdlib -static \
	    -Wl,--build-id=none -Wl,-T,examples/minivmm/guest/guest.ld -o $@ $<

%/guest.bin: %/guest.elf
	$(OBJCOPY) -O binary $< $@

$(C)/minivmm/guest/blob.o: examples/minivmm/guest/blob.S $(C)/minivmm/guest/guest.bin
	$(CC) -c -Wa,-I,$(@D) $< -o $@

$(C)/serialvmm/%.o: examples/serialvmm/%.c | deps
	@mkdir -p $(@D)
	$(CC) $(C_FLAGS) -c $< -o $@

# Programs of the Linux guest's, where there is no library to link with.
$(C)/serialvmm/check $(C)/serialvmm/disk: $(C)/serialvmm/%: examples/serialvmm/guest/%.c | deps
	@mkdir -p $(@D)
	$(CC) -std=gnu11 $(WARN) -O2 -static -MMD -MP -MF $@.d -o $@ $<

$(BUILD)/serialvmm: $(SERIALVMM_OBJECTS) $(C)/libbrant.so
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $(SERIALVMM_OBJECTS) -L$(C) -lbrant -lpthread $(rpath)

$(BUILD)/minivmm: $(MINIVMM_OBJECTS) $(C)/libbrant.so
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $(MINIVMM_OBJECTS) -L$(C) -lbrant -lpthread $(rpath)

# --- the C tests -------------------------------------------------------------
$(MACHINE): $(MACHINE_OBJECTS)
	@mkdir -p $(@D)
	rm -f $@ && $(AR) rcs $@ $^

$(C)/tests/%: c-tests/%.c $(MACHINE) $(C)/libbrant.so | deps
	@mkdir -p $(@D)
	$(CC) $(C_FLAGS) -Ic-tests -MF $@.d -MT $@ $(LDFLAGS) -o $@ $< $(MACHINE) \
	    -L$(C) -lbrant -lpthread $(rpath)

# As they would be if they had been compiled with an earlier header.
$(C)/baseline/%: c-tests/%.c src/capi/baseline/brant.h $(MACHINE) $(C)/libbrant.so | deps
	@mkdir -p $(@D)
	$(CC) $(subst -Iinclude,-Isrc/capi/baseline,$(C_FLAGS)) -Ic-tests -MF $@.d -MT $@ $(LDFLAGS) -o $@ $< $(MACHINE) \
	    -L$(C) -lbrant -lpthread $(rpath)

$(C)/manners.c: scripts/gen-api-test scripts/abi.py include/brant.h | deps
	@mkdir -p $(@D)
	scripts/gen-api-test > $@

$(C)/tests/manners: $(C)/manners.c $(C)/libbrant.so | deps
	@mkdir -p $(@D)
	$(CC) $(C_FLAGS) -Ic-tests -MF $@.d -MT $@ $(LDFLAGS) -o $@ $< \
	    -L$(C) -lbrant -lpthread $(rpath)

$(C)/syscalls.h: scripts/syscalls docs/threads.md | deps
	@mkdir -p $(@D)
	scripts/syscalls > $@

$(C)/tests/syscalls: $(C)/syscalls.h
$(C)/tests/syscalls: CPPFLAGS += -I$(C)

# --- what is measured --------------------------------------------------------
target/bench/slowdown: benches/slowdown.c $(MACHINE) $(C)/libbrant.so | deps
	@mkdir -p $(@D)
	$(CC) $(C_FLAGS) -Ic-tests -MF $(C)/slowdown.d -MT $@ $(LDFLAGS) -o $@ $< $(MACHINE) \
	    -L$(C) -lbrant -lpthread $(rpath)

target/bench/side target/bench/busy: target/bench/%: benches/peers/%.c benches/peers/peer.h $(C)/libbrant.so | deps
	@mkdir -p $(@D)
	$(CC) $(C_FLAGS) -MF $(C)/$*.d -MT $@ $(LDFLAGS) -o $@ $< -L$(C) -lbrant -lpthread $(rpath)

# A guest that QEMU and brant migrate: 64 KiB, seen at 0xf0000.
target/bench/rom.bin: benches/peers/rom.S | deps
	@mkdir -p $(@D)
	$(CC) -m32 -c -o $(@D)/rom.o $<
	$(LD) -m elf_i386 -Ttext=0xf0000 -o $(@D)/rom.elf $(@D)/rom.o
	$(OBJCOPY) -O binary -j .text $(@D)/rom.elf $@

# --- installing --------------------------------------------------------------
## install: install to DESTDIR + PREFIX (/usr/local) what make has built
install: $(if $(wildcard $(C)/libbrant.so.$(VERSION)),,lib) pc reference
	$(INSTALL) -d '$(DESTDIR)$(INCLUDEDIR)' '$(DESTDIR)$(LIBDIR)/pkgconfig' '$(DESTDIR)$(LIBDIR)/cmake/brant' \
	    '$(DESTDIR)$(MANDIR)/man3' '$(DESTDIR)$(DOCDIR)/html'
	$(INSTALL) -m 644 include/brant.h '$(DESTDIR)$(INCLUDEDIR)/brant.h'
	$(INSTALL) -m 644 $(C)/libbrant.a '$(DESTDIR)$(LIBDIR)/libbrant.a'
	$(INSTALL) -m 755 $(C)/libbrant.so.$(VERSION) '$(DESTDIR)$(LIBDIR)/libbrant.so.$(VERSION)'
	ln -sf libbrant.so.$(VERSION) '$(DESTDIR)$(LIBDIR)/$(SONAME)'
	ln -sf $(SONAME) '$(DESTDIR)$(LIBDIR)/libbrant.so'
	$(INSTALL) -m 644 $(C)/brant.pc '$(DESTDIR)$(LIBDIR)/pkgconfig/brant.pc'
	$(INSTALL) -m 644 $(C)/cmake/brantConfig.cmake $(C)/cmake/brantConfigVersion.cmake '$(DESTDIR)$(LIBDIR)/cmake/brant/'
	@echo "$(INSTALL) -m 644 $(REFERENCE)/man3/*.3 '$(DESTDIR)$(MANDIR)/man3/'"
	@$(INSTALL) -m 644 $(REFERENCE)/man3/*.3 '$(DESTDIR)$(MANDIR)/man3/'
	@echo "$(INSTALL) -m 644 $(REFERENCE)/html/*.html '$(DESTDIR)$(DOCDIR)/html/'"
	@$(INSTALL) -m 644 $(REFERENCE)/html/*.html '$(DESTDIR)$(DOCDIR)/html/'
	@if [ -z '$(DESTDIR)' ] && [ "$$(id -u)" = 0 ]; then ldconfig 2>/dev/null || true; fi
	@case '$(PREFIX)' in /usr|/usr/local) ;; *) echo 'to use it from there:'; \
	    echo '  export PKG_CONFIG_PATH=$(LIBDIR)/pkgconfig LD_LIBRARY_PATH=$(LIBDIR)';; esac

## install-debug: install the shared library's debug symbols beside it, in .debug
install-debug: $(if $(wildcard $(DEBUG)),,lib)
	$(INSTALL) -d '$(DESTDIR)$(LIBDIR)/.debug'
	$(INSTALL) -m 644 $(DEBUG) '$(DESTDIR)$(LIBDIR)/.debug/$(notdir $(DEBUG))'

## uninstall: remove what install put there
uninstall: reference
	rm -f '$(DESTDIR)$(INCLUDEDIR)/brant.h' '$(DESTDIR)$(LIBDIR)/libbrant.a' \
	    '$(DESTDIR)$(LIBDIR)/libbrant.so.$(VERSION)' '$(DESTDIR)$(LIBDIR)/$(SONAME)' \
	    '$(DESTDIR)$(LIBDIR)/libbrant.so' '$(DESTDIR)$(LIBDIR)/pkgconfig/brant.pc' \
	    '$(DESTDIR)$(LIBDIR)/.debug/$(notdir $(DEBUG))' '$(DESTDIR)$(LIBDIR)/cmake/brant/brantConfig.cmake' \
	    '$(DESTDIR)$(LIBDIR)/cmake/brant/brantConfigVersion.cmake'
	@for page in $(REFERENCE)/man3/*.3; do rm -f "$(DESTDIR)$(MANDIR)/man3/$${page##*/}"; done
	@for page in $(REFERENCE)/html/*.html; do rm -f "$(DESTDIR)$(DOCDIR)/html/$${page##*/}"; done
	@rmdir '$(DESTDIR)$(LIBDIR)/.debug' '$(DESTDIR)$(LIBDIR)/cmake/brant' '$(DESTDIR)$(DOCDIR)/html' '$(DESTDIR)$(DOCDIR)' 2>/dev/null || true

## clean: remove everything that was built
clean:
	rm -rf $(BUILD) $(C)
	cargo clean

## help: this list
help:
	@sed -n 's/^## \([a-z-]*\): /\1\t/p' $(firstword $(MAKEFILE_LIST)) | sort | expand -t 16

-include $(wildcard $(C)/*.d $(C)/serialvmm/*.d $(C)/minivmm/*.d $(C)/minivmm/guest/*.d $(C)/tests/*.d $(C)/baseline/*.d)
