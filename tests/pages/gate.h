/* What the examples of docs/gate.md take as given. */
extern brant_guest *guest;
extern brant_gate *gate;
extern brant_gate_vcpu *vcpu;
extern brant_gate_device *disk;
extern brant_error *error;
extern uint32_t number;
extern int vcpu_fd;
extern struct kvm_run *run;
int handle_exit(struct kvm_run *run);
void serve_one_request(void);
