/* What the examples of docs/embedding.md take as given. */
extern brant_gate *gate;
extern brant_gate_vcpu *vcpu;
extern brant_tracker *tracker;
extern uint32_t number;
extern int vcpu_fd;
extern struct kvm_run *run;
void serial(struct kvm_run *run);
void unexpected(struct kvm_run *run);
void tell_user(const char *text);
int user_gave_up(void);
int runs_there(const char *endpoint);
