/* What the example of docs/kvm-state.md takes as given. */
struct kvm_cpuid2;
struct vmm { int kvm_fd, vm_fd, vcpu_fd[8]; uint32_t vcpus; struct kvm_cpuid2 *cpuid; };
